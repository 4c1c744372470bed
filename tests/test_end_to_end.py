"""The whole pipeline as a user runs it: the real command and real stages in a temporary folder.

The command runs in this process, which has imported the libraries already; the tutorials of `test_docs` start it as a
process of its own.
"""

import gzip
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from pixrec_core.recommenders import _sequence_training

PIXREC = Path(sys.executable).with_name("pixrec")

TOML = """
variants = ["multimodal", "text_only"]

[datasets.small]
source = { kind = "sample", users = 60, items = 40 }
model = { embedding_dim = 16, item_tokens = 8 }
training = { epochs = 2, max_history_len = 4 }

[datasets.gone]
source = { kind = "amazon_2023", folder = "no/such/folder" }

[datasets.hollow]
source = { kind = "amazon_2023", folder = "hollow" }

[datasets.misread]
source = { kind = "amazon_2023", folder = "misread" }

[datasets.foreign]
source = { kind = "amazon_1823", folder = "misread" }

[datasets.blind]
source = { kind = "sample", users = 60, items = 40 }
model = { user_encoder = "tokens", backbone = "no/such-model" }
"""

REVIEW = {"rating": 5.0, "parent_asin": "A", "asin": "A", "user_id": "u", "timestamp": 1000}


DATA = ("raw", "items", "interactions", "images", "sequences", "item_features")


def only(*stages: str) -> list[str]:
    """Return arguments that run only these stages, without the baselines."""
    return [word for stage in stages for word in ("--stage", stage)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (folder / "pixrec.toml").write_text(TOML)
    (folder / "hollow").mkdir()
    (folder / "hollow" / "reviews.jsonl").touch()
    (folder / "hollow" / "meta.jsonl").touch()
    (folder / "misread").mkdir()
    (folder / "misread" / "reviews.jsonl").write_text(json.dumps(REVIEW) + "\n" + "no json\n")
    with gzip.open(folder / "misread" / "meta.jsonl.gz", "wt") as file:
        file.write('{"parent_asin": "A", "title": "Cup"}\n{"parent_asin": "B", "title": "Jug"}\n')
    return folder


Pixrec = Callable[..., tuple[int, str]]


@pytest.fixture
def pixrec(folder: Path, assets_anew: None, monkeypatch: pytest.MonkeyPatch, capfd) -> Iterator[Pixrec]:
    """Run `pixrec` with arguments in the folder: its exit code and what it printed."""
    for name in [name for name in os.environ if name.startswith(("PIXREC_", "DAGSTER_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(os, "environ", os.environ | {"COLUMNS": "300"})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(_sequence_training, "EPOCHS", 2)  # conformance tests train in full
    cli = importlib.import_module("pixrec_assets.cli")

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["pixrec", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = "".join(capfd.readouterr())
        assert "Traceback" not in printed
        return int(end.value.code or 0), printed

    yield call
    importlib.import_module("pixrec_assets.execution").open_instance.cache_clear()


@pytest.mark.slow
def test_a_first_run_ends_with_a_report_and_a_second_builds_nothing(pixrec: Pixrec) -> None:
    code, first = pixrec("run", "small")
    assert code == 0, first
    for method in ("popularity", "repeat_last", "text_only", "multimodal"):
        assert method in first
    report = Path(first.rsplit("report: ", 1)[1].split("\n")[0])
    assert "data:image/jpeg;base64," in report.read_text()

    code, second = pixrec("run", "small")
    assert (code, second.count("up to date (built "), "building" in second) == (0, 20, False)

    _, status = pixrec("status", "small")
    for figure in (
        "60 users",
        " bytes",
        " photos",
        "validation NDCG@10 0.",
        "flat, index recall 1.000",
        "vectors of 16",
    ):
        assert figure in status
    assert status.count(" min ago") == 20

    code, again = pixrec("run", "small", "--variant", "text_only", "--stage", "ranking", "--force")
    assert code == 0, again
    assert "ranking small|text_only: built" in again


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "reported"),
    [
        ("gone", ["no/such/folder", "folder"]),
        ("hollow", ["reviews.jsonl is empty", "correct [datasets.hollow.source] of pixrec.toml"]),
        ("misread", ["reviews.jsonl", "line 2", "max_bad_share"]),
        ("foreign", ["unknown source 'amazon_1823'", "did you mean `amazon_2023`?"]),
        ("nowhere", ["unknown dataset 'nowhere'", "small"]),
    ],
)
def test_a_mistake_is_reported_with_its_fix(pixrec: Pixrec, dataset: str, reported: list[str]) -> None:
    code, printed = pixrec("run", dataset)
    assert code == 1
    for words in reported:
        assert words in printed


@pytest.mark.slow
def test_a_missing_backbone_is_reported(pixrec: Pixrec) -> None:
    code, printed = pixrec("run", "blind", "--variant", "text_only", *only(*DATA, "checkpoint"))
    assert code == 1
    assert "model.backbone = 'no/such-model'" in printed
    assert "was not found on the Hugging Face hub" in printed
    assert "local folder" in printed


@pytest.mark.slow
def test_a_killed_run_continues(pixrec: Pixrec, folder: Path) -> None:
    """The next run also frees the pool slot of the killed process."""
    assert pixrec("run", "small", "--up-to", "sequences")[0] == 0
    shutil.rmtree(folder / "data/small/variants", ignore_errors=True)
    stages = only("checkpoint", "item_vectors", "item_index", "ranking")
    command = [PIXREC, "run", "small", "--variant", "text_only", *stages]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as killed:
        assert killed.stderr
        while "text_only: epoch 1" not in killed.stderr.readline():
            assert killed.poll() is None
        killed.kill()
    code, printed = pixrec("run", "small", "--variant", "text_only", *stages)
    assert code == 0, printed
    assert "ranking small|text_only: built" in printed
