"""The HTTP server, extra `serve`: `create_app` is the ASGI application, `run_server` starts it."""

from pixrec_core.serving.server.app import create_app
from pixrec_core.serving.server.start import run_server

__all__ = ["create_app", "run_server"]
