"""`pixrec serve`: the HTTP server."""

from typing import Final

import click

from pixrec_assets.commands.options import dataset_arguments
from pixrec_assets.terminal import warn
from pixrec_core.errors import SettingsError
from pixrec_core.settings import load_settings

EXAMPLES: Final = """\b
Examples:
  pixrec serve                                # all datasets, on http://127.0.0.1:8000
  pixrec serve books --port 9000 --workers 2
  PIXREC_SERVER__TOKEN=long-secret pixrec serve --host 0.0.0.0
"""


@click.command(epilog=EXAMPLES)
@dataset_arguments
@click.option("--host", help="Address to listen on; by default server.host.")
@click.option("--port", type=click.IntRange(0, 65_535), help="TCP port; by default server.port.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes; by default server.workers.")
def serve(datasets: tuple[str, ...], host: str | None, port: int | None, workers: int | None) -> None:
    """Answer requests over HTTP with what has been promoted of each DATASET.

    The page to try it is at /, the OpenAPI description at /openapi.json. A new promotion serves within seconds, without
    a restart.
    """
    settings = load_settings()
    names = datasets or tuple(settings.datasets)
    for name in names:
        settings.dataset(name)
    try:
        from pixrec_core.serving.server import run_server  # imports torch and fastapi
        from pixrec_core.serving.server.app import LOOPBACK
    except ModuleNotFoundError as error:
        raise SettingsError(f"`pixrec serve` needs {error.name}; install the extra: pip install '.[serve]'") from error
    given = {"host": host, "port": port, "workers": workers}
    server = settings.server.model_copy(update={name: value for name, value in given.items() if value is not None})
    if server.token is None and server.host not in LOOPBACK:
        warn(f"{server.host} can be reached by others, and no token is set (server.token)")
    run_server(settings.model_copy(update={"server": server}), names)
