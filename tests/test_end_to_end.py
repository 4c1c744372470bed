"""The whole pipeline as a user runs it: the real command and real stages in a temporary folder."""

import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

PIXREC = Path(sys.executable).with_name("pixrec")

TOML = """
variants = ["multimodal", "text_only"]

[datasets.small]
source = { kind = "sample", users = 60, items = 40 }
model = { embedding_dim = 16, item_tokens = 8 }
training = { epochs = 1, max_history_len = 4 }

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
model = { backbone = "no/such-model" }
"""

REVIEW = {"rating": 5.0, "parent_asin": "A", "asin": "A", "user_id": "u", "timestamp": 1000}


DATA = ("raw", "items", "interactions", "images", "sequences")


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


def pixrec(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"}
    environment |= {"COLUMNS": "300", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [PIXREC, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False
    )


@pytest.mark.slow
def test_a_first_run_ends_with_a_report_and_a_second_builds_nothing(folder: Path) -> None:
    first = pixrec(folder, "run", "small")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "Traceback" not in first.stdout + first.stderr
    for method in ("popularity", "repeat_last", "text_only", "multimodal"):
        assert method in first.stdout
    report = Path(first.stdout.rsplit("report: ", 1)[1].strip())
    assert "data:image/jpeg;base64," in report.read_text()

    second = pixrec(folder, "run", "small")
    assert second.returncode == 0
    assert "building" not in second.stdout
    assert second.stdout.count("up to date (built ") == 18

    status = pixrec(folder, "status", "small").stdout
    for figure in (
        "60 users",
        " bytes",
        " photos",
        "validation NDCG@10 0.",
        "flat, index recall@10 1.000",
        "vectors of 16",
    ):
        assert figure in status
    assert status.count(" min ago)") == 18

    trained_again = pixrec(folder, "run", "small", "--variant", "text_only", "--stage", "ranking", "--force")
    assert trained_again.returncode == 0, trained_again.stderr
    assert "ranking small|text_only: built" in trained_again.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "reported"),
    [
        ("gone", ["no/such/folder", "folder"]),
        ("hollow", ["reviews.jsonl is empty", "correct [datasets.<name>.source] of pixrec.toml"]),
        ("misread", ["reviews.jsonl", "line 2", "max_bad_share"]),
        ("foreign", ["unknown source 'amazon_1823'", "amazon_2023, sample"]),
        ("nowhere", ["unknown dataset 'nowhere'", "small"]),
    ],
)
def test_a_mistake_is_reported_with_its_fix_and_without_a_traceback(
    folder: Path, dataset: str, reported: list[str]
) -> None:
    done = pixrec(folder, "run", dataset)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    for words in reported:
        assert words in done.stderr


@pytest.mark.slow
def test_a_missing_backbone_is_reported(folder: Path) -> None:
    done = pixrec(folder, "run", "blind", "--variant", "text_only", *only(*DATA, "checkpoint"))
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert "backbone 'no/such-model'" in done.stderr
    assert "was not found on the Hugging Face hub" in done.stderr
    assert "local folder" in done.stderr


@pytest.mark.slow
def test_a_killed_run_continues(folder: Path, tmp_path: Path) -> None:
    """The next run also frees the pool slot of the killed process."""
    (tmp_path / "pixrec.toml").write_text(TOML.replace("epochs = 1", "epochs = 2"))
    environment = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"}
    stages = only(*DATA, "checkpoint", "item_vectors", "item_index", "ranking")
    command = [PIXREC, "run", "small", "--variant", "text_only", *stages]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL) as killed:
        state = tmp_path / "data/small/variants/text_only/training"
        deadline = time.monotonic() + 200
        while not list(state.glob("*/checkpoint-*")):
            assert killed.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        killed.kill()
    again = pixrec(tmp_path, "run", "small", "--variant", "text_only", *stages)
    assert again.returncode == 0, again.stderr
    assert "ranking small|text_only: built" in again.stdout
