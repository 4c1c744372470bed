"""A local Hugging Face hub: one repository with several commits, and a branch `main` that can be moved."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

NAME = "shop/eyes"


class FakeHub:
    """Serves folders as commits of `NAME`.

    Attributes:
        commits: folder of each commit.
        main: the commit that the default branch points to.
        requested: paths of all requests.
    """

    def __init__(self, commits: dict[str, Path], main: str) -> None:
        self.commits, self.main, self.requested = commits, main, list[str]()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub._answer(self, body=True)

            def do_HEAD(self) -> None:
                hub._answer(self, body=False)

            def log_message(self, *_) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler, body: bool) -> None:
        path = request.path.partition("?")[0]
        self.requested.append(path)
        headers, content = {"X-Error-Code": "EntryNotFound"}, None
        if path.startswith(f"/api/models/{NAME}/tree/"):
            commit = self._commit(path.removeprefix(f"/api/models/{NAME}/tree/"))
            content = json.dumps([_entry(file) for file in self.commits[commit].iterdir()]).encode()
            headers = {"Content-Type": "application/json"}
        elif path.startswith(f"/api/models/{NAME}"):
            _, _, revision = path.partition("/revision/")
            content = json.dumps({"id": NAME, "sha": self._commit(revision or "main")}).encode()
            headers = {"Content-Type": "application/json"}
        elif path.startswith(f"/{NAME}/resolve/"):
            revision, _, name = path.removeprefix(f"/{NAME}/resolve/").partition("/")
            commit = self._commit(revision)
            headers["X-Repo-Commit"] = commit
            file = self.commits[commit] / name
            if file.is_file():
                content = file.read_bytes()
                headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        request.send_response(200 if content is not None else 404)
        for name, value in (headers | {"Content-Length": str(len(content or b""))}).items():
            request.send_header(name, value)
        request.end_headers()
        if body and content:
            request.wfile.write(content)

    def _commit(self, revision: str) -> str:
        return self.main if revision == "main" else revision


def _entry(file: Path) -> dict[str, str | int]:
    """A file as the hub lists it."""
    return {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40}
