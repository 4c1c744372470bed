"""Backbones by name and revision: from a local hub, from the cache, and with neither."""

import os
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE
from typing import Self

import pytest
from transformers import set_seed

from pixrec_core.hub import model_state
from pixrec_core.models.backbones import tiny
from tests.core.models.fake_hub import NAME, FakeHub

OLD, NEW = "1" * 40, "2" * 40
pytestmark = pytest.mark.slow  # each test starts processes

UNREACHABLE = "http://127.0.0.1:9"  # nothing listens there

#: For each line NAME@REVISION of its input, prints the current commit, then the pinned commit and the sum of the
#: loaded weights, or the error.
LOAD = """
import sys
from pixrec_core.errors import BackboneError
from pixrec_core import hub
from pixrec_core.models.loading import create_backbone
from pixrec_core.settings import ModelSettings
for line in sys.stdin:
    name, _, revision = line.rstrip().partition("@")
    print(hub.model_state(name, revision or None))
    try:
        settings = hub.pin_revision(ModelSettings(backbone=name, revision=revision or None))
        backbone, _ = create_backbone(settings.backbone, settings.revision, list)
    except BackboneError as error:
        print(error, flush=True)
    else:
        print(settings.revision, f"{sum(p.double().sum().item() for p in backbone.parameters()):.9f}", flush=True)
"""


class Loader:
    """Loads backbones in a subprocess, since huggingface_hub reads its environment variables once, on import."""

    def __init__(self, home: Path, endpoint: str, offline: bool = False) -> None:
        environment = os.environ | {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": str(int(offline))}
        command = [sys.executable, "-W", "error", "-c", LOAD]
        self._process = subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True, env=environment)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self._process.communicate()
        assert self._process.returncode == 0

    def load(self, name: str = NAME, revision: str = "") -> list[str]:
        self._process.stdin.write(f"{name}@{revision}\n")
        self._process.stdin.flush()
        return [self._process.stdout.readline().rstrip() for _ in range(2)]


@pytest.fixture(scope="module")
def commits(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], dict[str, str]]:
    """A folder for each of two commits, and the second line that `LOAD` prints for each."""
    folders, printed = {}, {}
    for seed, commit in enumerate((OLD, NEW)):
        folders[commit] = tmp_path_factory.mktemp(f"commit{seed}")
        set_seed(seed)
        model, processor = tiny.create(["Title: Wool cushion"])
        model.save_pretrained(folders[commit])
        processor.save_pretrained(folders[commit])
        printed[commit] = f"{commit} {sum(p.double().sum().item() for p in model.parameters()):.9f}"
    return folders, printed


@pytest.fixture
def hub(commits):
    hub = FakeHub(commits[0], OLD)
    yield hub
    hub.close()


def check_error_without_cache(loader: Loader) -> None:
    """It names the download command."""
    commit, message = loader.load("shop/ears")
    assert commit == "None"
    assert message.startswith("model.backbone = 'shop/ears', revision of the default branch, is no local folder")
    assert "hf download NAME --local-dir FOLDER" in message
    assert "is no local folder and was not found" in loader.load("no/such/folder here")[1]


def test_a_moved_branch_loads_another_commit_and_the_cache_is_used_without_a_network(hub, commits, tmp_path) -> None:
    printed = commits[1]
    with Loader(tmp_path, hub.url) as online:
        assert online.load() == [OLD, printed[OLD]]
        hub.main = NEW
        assert online.load() == [NEW, printed[NEW]]
        assert online.load(revision=OLD) == [OLD, printed[OLD]]
        assert not [path for path in hub.requested if path.endswith(".bin")]
        with Loader(tmp_path, UNREACHABLE) as loader:
            assert loader.load() == [NEW, printed[NEW]]
            check_error_without_cache(loader)
        requests = len(hub.requested)
        with Loader(tmp_path, hub.url, offline=True) as loader:
            assert loader.load() == [NEW, printed[NEW]]
            assert loader.load(revision=OLD) == [OLD, printed[OLD]]
            check_error_without_cache(loader)
            (processor,) = tmp_path.glob(f"hub/*/snapshots/{NEW}/preprocessor_config.json")
            processor.unlink()  # as after an interrupted download
            commit, message = loader.load()
            assert commit == NEW
            assert message.startswith(
                f"model '{NAME}', revision {NEW}, could not be downloaded from the Hugging Face hub ("
            )
        assert len(hub.requested) == requests
        assert online.load() == [NEW, printed[NEW]]


def test_a_proxy_that_does_not_answer_is_an_error_of_the_model(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", UNREACHABLE)
    with Loader(tmp_path, "http://hub.invalid") as loader:
        commit, message = loader.load()
        assert commit == "None"
        assert message.startswith(f"model.backbone = '{NAME}', revision of the default branch, is no local folder")


def test_hidden_files_of_a_folder_are_no_part_of_its_model(tmp_path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = model_state(str(tmp_path))
    (tmp_path / ".DS_Store").touch()
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "lock").touch()
    assert model_state(str(tmp_path)) == before
    (tmp_path / "model.safetensors").touch()
    assert model_state(str(tmp_path)) != before
