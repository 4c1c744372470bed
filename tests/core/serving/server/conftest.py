"""A real server on 127.0.0.1, in a thread."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
import uvicorn

from pixrec_core.serving.server import create_app
from pixrec_core.serving.server.live import open_recommenders
from pixrec_core.settings import CandidateRules, ServerSettings


class Client(requests.Session):
    """Requests to one server."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.url = f"http://127.0.0.1:{port}"

    def request(self, method, url, **options):
        return super().request(method, self.url + url, timeout=600, **options)

    def recommend(self, **question):
        return self.post("/datasets/shop/recommend", json=question)


@contextmanager
def running_server(data_dir: Path, rules: CandidateRules | None = None, **settings) -> Iterator[Client]:
    """Serve the dataset `shop`."""
    recommenders = open_recommenders(data_dir, {"shop": rules or CandidateRules()})
    app = create_app(recommenders, ServerSettings(**{"reload_s": 0.05, "timeout_s": 600, **settings}))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    started, startup = threading.Event(), server.startup

    async def startup_and_tell(*arguments, **options):
        await startup(*arguments, **options)
        started.set()

    server.startup = startup_and_tell
    thread = threading.Thread(target=server.run)
    thread.start()
    started.wait()
    try:
        yield Client(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def client(served) -> Iterator[Client]:
    with running_server(served.settings.data_dir) as client:
        yield client
