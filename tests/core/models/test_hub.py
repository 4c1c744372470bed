"""Backbones by name and revision: from a hub on loopback, from the cache, and with neither."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import set_seed

from pixrec_core.models.backbones import tiny
from tests.core.models.fake_hub import NAME, FakeHub

OLD, NEW = "1" * 40, "2" * 40
pytestmark = pytest.mark.slow  # each load is a process of its own

DEAD = "http://127.0.0.1:9"  # nothing listens there

#: Prints the commit that the settings are pinned to and the sum of the weights that are loaded by them.
LOAD = """
import sys
from pixrec_core.errors import BackboneError
from pixrec_core.models import hub
from pixrec_core.models.loading import create_backbone
from pixrec_core.settings import ModelSettings
name, revision = sys.argv[1], sys.argv[2] or None
print(hub.commit(ModelSettings(backbone=name, revision=revision)))
try:
    settings = hub.pinned(ModelSettings(backbone=name, revision=revision))
    backbone, _ = create_backbone(settings.backbone, settings.revision, list)
except BackboneError as error:
    print(error)
else:
    print(settings.revision, f"{sum(p.double().sum().item() for p in backbone.parameters()):.9f}")
"""


def load(home: Path, endpoint: str, revision: str = "", offline: bool = False, name: str = NAME) -> list[str]:
    """Load a backbone in a process of its own: the hub's client reads its settings once."""
    environment = os.environ | {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": str(int(offline))}
    command = [sys.executable, "-W", "error", "-c", LOAD, name, revision]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def commits(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], dict[str, str]]:
    """A folder for each of two commits, and what `LOAD` prints for them."""
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


def test_a_moved_branch_is_another_backbone_and_a_commit_stays(hub, commits, tmp_path) -> None:
    printed = commits[1]
    assert load(tmp_path, hub.url) == [OLD, printed[OLD]]
    hub.main = NEW
    assert load(tmp_path, hub.url) == [NEW, printed[NEW]]
    assert load(tmp_path, hub.url, OLD) == [OLD, printed[OLD]]
    assert not [path for path in hub.asked if path.endswith(".bin")]


def test_without_a_network_the_cache_serves_what_it_has(hub, commits, tmp_path) -> None:
    expected = [OLD, commits[1][OLD]]
    assert load(tmp_path, hub.url) == expected
    assert load(tmp_path, DEAD) == expected
    assert load(tmp_path, hub.url, offline=True) == expected


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_network_and_a_cache_the_mend_is_told(tmp_path, offline: bool) -> None:
    commit, message = load(tmp_path, DEAD, offline=offline)
    assert commit == "None"
    assert message.startswith(f"backbone '{NAME}', revision of the default branch, is no local folder")
    assert "hf download NAME --local-dir FOLDER" in message


def test_a_name_that_cannot_be_is_told(tmp_path) -> None:
    assert "is no local folder and was not found" in load(tmp_path, DEAD, name="no/such/folder here")[1]
