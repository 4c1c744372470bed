"""Folders of backbones: damaged, incomplete and hostile ones are errors that name the problem.

Nothing is unpickled, executed or fetched, and no memory is allocated for what the folder claims.
"""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pixrec_core.errors import BackboneError
from pixrec_core.models.loading import create_backbone
from tests.core.models import families

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD = "lm_head.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    families.save("smolvlm", folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    return tmp_path


def load(folder: Path) -> Any:
    return create_backbone(str(folder), None, list)[0]


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self):
        return (Path.touch, (self.sprung,))


def test_pickled_weights_are_never_read(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({"weight": Trap(folder / "sprung")}, folder / "pytorch_model.bin")
    with pytest.raises(BackboneError, match=r"does not read pickled weights \(convert a pytorch_model\.bin"):
        load(folder)
    assert not (folder / "sprung").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "../elsewhere/model.safetensors", "/model.safetensors", "..", 7])
def test_an_index_leads_to_safetensors_files_of_the_folder_only(folder: Path, name: str | int) -> None:
    keys = list(load_file(folder / WEIGHTS))
    (folder / WEIGHTS).rename(folder.parent / "elsewhere.safetensors")
    torch.save({"weight": Trap(folder / "sprung")}, folder / "pytorch_model.bin")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(keys, name)}))
    with pytest.raises(BackboneError, match=r"only safetensors files in the same folder are read"):
        load(folder)
    assert not (folder / "sprung").exists()


def test_weights_in_several_files_load(folder: Path) -> None:
    model = load(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="50KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    sharded = load(folder).state_dict()
    assert all(torch.equal(value, sharded[name]) for name, value in model.state_dict().items())
    next(folder.glob("model-*.safetensors")).unlink()
    with pytest.raises(BackboneError, match=r"model-.*safetensors is missing, though model\.safetensors\.index\.json"):
        load(folder)


def test_code_in_a_model_folder_is_never_executed(folder: Path) -> None:
    (folder / "theirs.py").write_text(f"open({str(folder / 'sprung')!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    automatic = {"AutoConfig": "theirs.Config", "AutoModelForImageTextToText": "theirs.Model"}
    configure(folder, model_type="theirs", auto_map=automatic)
    with pytest.raises(BackboneError, match="does not run code from a model's folder"):
        load(folder)
    assert not (folder / "sprung").exists()


@pytest.mark.parametrize("missing", ["config.json", WEIGHTS, "preprocessor_config.json", "tokenizer.json"])
def test_a_missing_file_is_an_error_with_advice(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(BackboneError, match=r"could not be loaded .*local folder of one"):
        load(folder)


def configure(folder: Path, section: str | None = None, name: str = "config.json", **values: Any) -> None:
    """Change values of config.json, or of one of its sections."""
    config = json.loads((folder / name).read_text())
    (config if section is None else config.setdefault(section, {})).update(values)
    (folder / name).write_text(json.dumps(config))


def reweigh(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def header(folder: Path, length: int, text: bytes) -> None:
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", length) + text)


DEEP = "[" * 100_000 + "]" * 100_000
HUGE = json.dumps({HEAD: {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4 * 10**18]}}).encode()


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        # Weights that are not the model's.
        (lambda f: reweigh(f, lambda w: w.pop(HEAD)), rf"{HEAD} is missing\. Restore"),
        (lambda f: reweigh(f, lambda w: [w.pop(n) for n in sorted(w)[::2]]), r"is missing; .* and \d+ more\. Restore"),
        (lambda f: reweigh(f, lambda w: w.clear()), r"is missing; .* and \d+ more\. Restore"),
        (lambda f: reweigh(f, lambda w: w.update(extra=torch.zeros(1))), "extra is unexpected"),
        (
            lambda f: reweigh(f, lambda w: w.update({HEAD: torch.zeros(2, 3)})),
            rf"{HEAD} has shape \(2, 3\) in place of",
        ),
        # Files that are cut or forged.
        (lambda f: (f / WEIGHTS).write_bytes(b""), "is damaged or no safetensors file"),
        (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]), "is damaged or no safetensors file"),
        (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:99]), "is damaged or no safetensors file"),
        (lambda f: header(f, 2**63, b"{}"), "is damaged or no safetensors file"),
        (lambda f: header(f, len(HUGE), HUGE), "is damaged or no safetensors file"),
        (lambda f: header(f, len(DEEP), DEEP.encode()), "is damaged or no safetensors file"),
        (lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).mkdir()), "has no model.safetensors"),
        *(
            (lambda f, text=text: ((f / WEIGHTS).unlink(), (f / INDEX).write_text(text)), message)
            for text, message in [
                ("{", "index.json cannot be read"),
                ("[]", "holds no JSON object"),
                (DEEP, "cannot be read .RecursionError"),
                ("{}", "it has no weight_map"),
                ('{"weight_map": {}}', "it has no weight_map"),
                ('{"weight_map": ["model.safetensors"]}', "it has no weight_map"),
            ]
        ),
        # Configurations.
        *(
            (lambda f, text=text: (f / "config.json").write_text(text, "latin-1"), message)
            for text, message in [
                ("", "config.json cannot be read"),
                ('{"a": "\xff"}', "config.json cannot be read"),
                ("null", "holds no JSON object"),
                (DEEP, "cannot be read .RecursionError"),
                ('{"a": ' * 40 + "1" + "}" * 40, "nested more than 30 levels"),
                (f'{{"model_type": "{"x" * 10_000_001}"}}', "more than 10,000,000 are not read"),
                ('{"model_type": "smolvlm"}', "is missing|has shape"),
                ("{}", "model_type"),
            ]
        ),
        (
            lambda f: configure(f, "text_config", num_hidden_layers=10**6),
            "num_hidden_layers is 1,000,000, and 1,000 is",
        ),
        (
            lambda f: configure(f, "vision_config", num_hidden_layers=1e300),
            r"vision_config.num_hidden_layers is 1e\+300",
        ),
        (lambda f: configure(f, "text_config", num_hidden_layers=60), r"layers\.\d+\..* is missing"),
        (lambda f: configure(f, "text_config", num_hidden_layers=float("nan")), "num_hidden_layers is nan"),
        (lambda f: configure(f, num_labels=10**9), "num_labels is 1,000,000,000"),
        (
            lambda f: configure(f, "text_config", hidden_size=10**6, head_dim=16),
            r"has shape \(.*in place of \(.*1000000",
        ),
        (lambda f: configure(f, "text_config", vocab_size=10**12), r"has shape .*in place of \(1000000000000"),
        (lambda f: configure(f, "text_config", num_hidden_layers="many"), "could not be loaded"),
        (lambda f: configure(f, "text_config", hidden_size=-1), "could not be loaded"),
        (lambda f: configure(f, "vision_config", image_size=10**6), "image_size is 1,000,000, and 4,096 is"),
        (lambda f: configure(f, None, "preprocessor_config.json", size={"height": 10**6}), "size.height is 1,000,000"),
        (lambda f: (f / "preprocessor_config.json").write_text(DEEP), "preprocessor_config.json cannot be read"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "could not be loaded"),
        (lambda f: (f / "tokenizer.json").write_text(DEEP), "could not be loaded"),
        (lambda f: (f / "tokenizer_config.json").write_text(DEEP), "could not be loaded"),
        # Code and weights from elsewhere.
        (
            lambda f: (f / "adapter_config.json").write_text('{"base_model_name_or_path": "foreign/model"}'),
            "holds adapter_config.json, which would load weights besides",
        ),
        (lambda f: (f / "shard-00000-model-00000-of-00001.safetensors").touch(), "holds shard-00000-model"),
        (lambda f: configure(f, transformers_weights="other.safetensors"), "transformers_weights names other weights"),
        *(
            (lambda f, values=values: configure(f, *values[:-1], **values[-1]), "names code on the hub")
            for values in [
                ({"_attn_implementation": "kernels-community/flash-attn"},),
                ({"attn_implementation": "foreign/kernel@main:function"},),
                ({"_attn_implementation": {"text_config": "foreign/kernel"}},),
                ("text_config", {"_attn_implementation": "foreign/kernel"}),
                ("text_config", {"_experts_implementation": "foreign/kernel"}),
            ]
        ),
    ],
)
def test_a_hostile_folder_is_one_error_before_memory_is_allocated(
    folder: Path, monkeypatch: pytest.MonkeyPatch, attack: Callable[[Path], Any], message: str
) -> None:
    attack(folder)
    load_model, devices = transformers.AutoModelForImageTextToText.from_pretrained, []

    def watch(*arguments: Any, **options: Any) -> Any:
        devices.append(options.get("device_map"))
        return load_model(*arguments, **options)

    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", watch)
    with pytest.raises(BackboneError, match=message):
        load(folder)
    if "tokenizer" not in message and not message.startswith("could not"):
        assert devices in ([], [{"": "meta"}]), "only shapes were read"
