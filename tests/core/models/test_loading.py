"""Folders without a usable backbone: errors name the problem, and nothing is unpickled or executed."""

import json
from pathlib import Path

import pytest
import torch

from pixrec_core.errors import BackboneError
from pixrec_core.models.loading import create_backbone
from tests.core.models import families


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    families.save("smolvlm", tmp_path)
    return tmp_path


def test_pickled_weights_are_never_read(folder: Path) -> None:
    class Trap:
        def __reduce__(self):
            return (Path.touch, (folder / "sprung",))

    (folder / "model.safetensors").unlink()
    torch.save({"weight": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(BackboneError, match=r"does not read pickled weights \(convert a pytorch_model\.bin"):
        create_backbone(str(folder), None, list)
    assert not (folder / "sprung").exists()


def test_code_in_a_model_folder_is_never_executed(folder: Path) -> None:
    (folder / "theirs.py").write_text(f"open({str(folder / 'sprung')!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    automatic = {"AutoConfig": "theirs.Config", "AutoModelForImageTextToText": "theirs.Model"}
    path.write_text(json.dumps(config | {"model_type": "theirs", "auto_map": automatic}))
    with pytest.raises(BackboneError, match="does not run code from a model's folder"):
        create_backbone(str(folder), None, list)
    assert not (folder / "sprung").exists()


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_a_missing_file_is_an_error_with_advice(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(BackboneError, match=r"could not be loaded .*local folder of one"):
        create_backbone(str(folder), None, list)
