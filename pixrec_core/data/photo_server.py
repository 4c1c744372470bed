"""A local folder of photos over HTTP on a loopback port, for as long as a download lasts."""

import functools
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

log = logging.getLogger(__name__)


class _Handler(SimpleHTTPRequestHandler):
    """Files of one folder: no listings, nothing outside it, no log."""

    protocol_version = "HTTP/1.1"  # connections stay open
    disable_nagle_algorithm = True  # small answers leave at once
    wbufsize = 65_536  # headers and body in one packet
    timeout = 60

    def send_head(self) -> BytesIO | BinaryIO | None:
        root = Path(self.directory).resolve()
        try:
            path = Path(self.translate_path(self.path)).resolve()
            inside = path.is_relative_to(root) and path.is_file()
        except (OSError, RuntimeError, ValueError):  # a name too long, a loop of links, a null byte
            inside = False
        if not inside:
            self.send_error(404)
            return None
        return super().send_head()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the parent's name for it
        pass


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the parent's signature
        """Say it without a traceback on the terminal: most often the client has hung up."""
        log.debug("photo server: %s", client_address, exc_info=True)


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder read only; yields "127.0.0.1:<port>"."""
    handler = functools.partial(_Handler, directory=str(folder))
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
