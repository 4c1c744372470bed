"""Secrets of odd forms are planted in settings, URLs and raw lines; whatever a run leaves is searched for them."""

import gzip
import json
import re
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import pytest

from pixrec_core import pipeline
from pixrec_core.settings import Settings
from pixrec_core.stages import Work
from tests import test_end_to_end
from tests.core.data.hostile_server import Answer, Server, hostile_server, jpeg, sends

pytest.importorskip("mlflow", reason="install .[tracking]")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
]

#: The command in this process; a fixture.
pixrec = test_end_to_end.pixrec

SECRET = re.compile(rb"PLANTED[^\n]{0,40}")
CREDENTIALS = [
    "me:PLANTED1@",
    "me:PLANTED 2@",
    'me:PLANTED"3@',
    "me:PLANTED/4@",
    "me:PLANTED@5@",
    "me:PLANTED?6@",
    "PLANTED7@",
]
QUERIES = ["?X-Amz-Signature=PLANTED8", '?sig=PLANTED 9"x', "?a=1&token=PLANTED'0#PLANTEDa", "?sig=PLANTED@b"]
#: Data that keep whole URLs and raw lines, as docs/security.md says.
DATA = re.compile(
    r"pixrec\.toml|data/shop/(promoted/\d+/)?(raw/[a-z][\w.]*|items(\.quarantine)?\.parquet|images\.parquet|sequences\.duckdb)"
)

TOML = """
variants = ["text_only"]
tracking = {{ uri = "sqlite:///{folder}/mlflow.db" }}

[datasets.shop]
source = {{ kind = "amazon_2023", reviews_url = '{reviews}', metadata_url = '{metadata}' }}
images = {{ allow_private_hosts = true, headers = {{ "127.0.0.1" = {{ Authorization = "PLANTEDj" }} }} }}
ingest = {{ max_bad_share = 0.2 }}
model = {{ embedding_dim = 16, item_tokens = 8 }}
training = {{ epochs = 1, max_history_len = 4 }}
"""


class Answers(dict[str, Answer]):
    """Photos below /photo, whatever their query."""

    def get(self, path: str, default: Answer) -> Answer:  # type: ignore[override]
        return sends(jpeg()) if path.startswith("/photo") else super().get(path.partition("?")[0], default)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with hostile_server() as server:
        server.answers = Answers()
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Path:
    """A project whose raw files and photos have URLs with secrets."""
    folder, sample = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("sample")
    drawn = {"shop": {"source": {"kind": "sample", "users": 60, "items": 40}}}
    pipeline.RAW.materialise(work := Work(Settings(root=sample, datasets=drawn), "shop"))
    secrets, lines = cycle((c, q) for c in CREDENTIALS for q in QUERIES), []
    for number, line in enumerate(gzip.decompress((work.paths.raw / "meta.jsonl.gz").read_bytes()).splitlines()):
        credentials, query = next(secrets)
        page = "photo" if number % 2 else "gone"
        url = f"http://{credentials}{server.host}/{page}/{number}.jpg{query}"
        lines.append(json.dumps(json.loads(line) | {"images": [{"large": url}]}))
    lines.insert(0, '{"parent_asin": 7, "images": "http://me:PLANTED\\" c@h/x?sig=PLANTED d"}')
    lines.insert(1, f"no JSON http://{CREDENTIALS[1]}h/x.jpg{QUERIES[1]}")
    server.answers["/meta.jsonl"] = sends("\n".join(lines).encode())
    server.answers["/reviews.jsonl.gz"] = sends((work.paths.raw / "reviews.jsonl.gz").read_bytes())
    urls = {
        "reviews": f"http://me:PLANTED e%22@{server.host}/reviews.jsonl.gz?X-Amz-Signature=PLANTEDf",
        "metadata": f"http://{server.host}/meta.jsonl?sig=PLANTED g",
    }
    (folder / "pixrec.toml").write_text(TOML.format(folder=folder, **urls))
    return folder


def found_in(folder: Path) -> dict[str, list[bytes]]:
    """Secrets in each file that is no data; also in names."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 50
    texts = {str(path.relative_to(folder)): path.name.encode() + path.read_bytes() for path in files}
    return {
        name: SECRET.findall(text)[:3]
        for name, text in texts.items()
        if b"PLANTED" in text and not DATA.fullmatch(name)
    }


def test_a_whole_run_leaves_no_secret(
    pixrec: test_end_to_end.Pixrec,  # the fixture
    folder: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    printed = {}

    def call(*arguments: str, code: int | None = 0) -> str:
        ended, printed[arguments] = pixrec(*arguments)
        assert code is None or ended == code, printed[arguments]
        assert b"PLANTED" not in printed[arguments].encode(), (
            arguments,
            SECRET.findall(printed[arguments].encode())[:5],
        )
        return printed[arguments]

    call("run", "shop")
    call("status", "shop")
    assert "gone" in call("photos", "shop", "--failed")
    call("photos", "shop", "--failed", "--json")
    call("export", "shop", "--output", str(folder / "export"))
    call("recommend", "shop", "--user", "nobody", code=1)
    call("doctor", code=None)
    assert found_in(folder) == {}
    assert "PLANTED" in (folder / "pixrec.toml").read_text()

    _, asked = pixrec("photos", "shop", "--failed", "--whole-urls", "--json")
    assert "PLANTED" in asked

    # Errors: a source, settings and an MLflow server that do not answer.
    server.answers["/reviews.jsonl.gz"] = sends(b"no", 403)
    assert "http 403" in call("run", "shop", "--stage", "raw", "--force", code=1)
    for name, value in [
        ("PIXREC_TRAINING", "http://me:PLANTED h/@x?k=PLANTED"),
        ("PIXREC_TRACKING__PASSWORD", "PLANTED"),
        ("PIXREC_DATASETS__SHOP__SOURCE__REVIEWS_URL", "me:PLANTED@host/x"),
    ]:
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            call("run", "shop", code=1)
            call("doctor", code=1)
    for uri in (
        f"http://me:PLANTED'h@{server.host}/mlflow",
        "sqlite:////no/such/folder/x.db?password=PLANTED i",
        "postgresql://me:PLANTED@127.0.0.1:9/db?sslpassword=PLANTED",
    ):
        with monkeypatch.context() as patch:
            patch.setenv("PIXREC_TRACKING__URI", uri)
            patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
            call("run", "shop", "--stage", "checkpoint", "--force", code=1)
            call("doctor", code=None)
    assert found_in(folder) == {}
