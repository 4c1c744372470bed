"""Frozen item encoders: item texts and photos to vectors, once per item, shared by all variants.

A module of this package is an encoder. It has two functions:

`create(name, texts, max_tokens) -> ItemEncoder`
    makes the encoder. `name` is the value of the setting, `texts` returns the texts that an encoder may be fitted on,
    and `max_tokens` limits the tokens of a text for an encoder that reads tokens;
`load(folder) -> ItemEncoder`
    reads an encoder that `ItemEncoder.save` wrote. It gives the same vectors.

`model.text_encoder` and `model.photo_encoder` name a module, or a model of the Hugging Face hub or in a local folder,
which `hugging_face.py` loads. `base.py` has the interface, `build.py` the stage `item_features`, and
`data.item_features` reads what that stage wrote.
"""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Final

from pixrec_core import files
from pixrec_core.errors import SettingsError, did_you_mean
from pixrec_core.models.encoders.base import ENCODER_FILE, ItemEncoder, Modality, require_packages
from pixrec_core.plugins import load_plugin, plugin_names

__all__ = ["ItemEncoder", "check_encoder", "create_encoder", "encoder_names", "load_encoder"]

NOT_ENCODERS: Final = frozenset({"base", "build", "hugging_face"})


def encoder_names() -> list[str]:
    """Return the names of the encoders that are modules of this package, sorted."""
    return [name for name in plugin_names(__name__) if name not in NOT_ENCODERS]


def check_encoder(name: str, modality: Modality) -> None:
    """Check a name in `model.text_encoder` or `model.photo_encoder`, without importing the encoder.

    The hub has models without an owner in their name, such as `gpt2`, so only a name that is similar to one of this
    package is refused here.

    Raises:
        SettingsError: the name is a misspelt one of this package, or an extra is not installed.
    """
    require_packages(name)
    known = encoder_names()
    if name in known or "/" in name or Path(name).exists():
        return
    if get_close_matches(name.lower(), known):
        raise SettingsError(f"model.{modality}_encoder: unknown encoder {name!r}{did_you_mean(name.lower(), known)}")


def create_encoder(name: str, modality: Modality, texts: Callable[[], Sequence[str]], max_tokens: int) -> ItemEncoder:
    """Return the encoder that `model.text_encoder` or `model.photo_encoder` names; see above for the arguments.

    Raises:
        SettingsError: the name is misspelt, the encoder does not encode this modality, or an extra is not installed.
        BackboneError: the model was not found, or PixRec cannot use it.
    """
    check_encoder(name, modality)
    module = load_plugin(__name__, name if name in encoder_names() else "hugging_face")
    encoder: ItemEncoder = module.create(name, texts, max_tokens)
    if modality not in encoder.modalities:
        raise SettingsError(
            f"model.{modality}_encoder = {name!r} does not encode {modality}s; set it to "
            f"{'lsa' if modality == 'text' else 'histogram'} or to another encoder (docs/how-it-works.md)"
        )
    return encoder


def load_encoder(folder: Path) -> ItemEncoder:
    """Read a saved encoder.

    Raises:
        MissingArtefactError: the folder holds no encoder.
        ArtefactError: a file of it is damaged, or the model that it refers to has changed.
    """
    encoder: ItemEncoder = load_plugin(__name__, str(files.read_json(folder / ENCODER_FILE)["encoder"])).load(folder)
    return encoder
