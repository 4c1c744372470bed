"""Vectors of item texts and photos, from the stage `item_features`.

data/<dataset>/item_features/ has for each modality, `text` and `photo`:
  <modality>.npy         (n, F) float32, one row per item of the catalogue; 0 for an item without a text or photo
  <modality>_keys.npy    (n,) hash of each item's text or photo; empty for an item without one
  <modality>_encoder/    the encoder, for new items and queries; missing if no item has a text or photo
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixrec_core import files
from pixrec_core.errors import ArtefactError
from pixrec_core.paths import DatasetPaths


@dataclass(frozen=True)
class ItemFeatures:
    """Vectors of one modality of all items of the catalogue.

    Attributes:
        values: (n, F) float32, memory-mapped and read-only; of unit length, or 0 for an unknown item.
        known: (n,) whether the item has a text or photo.
    """

    values: NDArray[np.float32]
    known: NDArray[np.bool_]


def read_photo_features(paths: DatasetPaths) -> ItemFeatures:
    """Return the vectors of the photos, in the order of the catalogue.

    Raises:
        MissingArtefactError: the stage `item_features` has not run.
        ArtefactError: a file is damaged.
    """
    return read_features(paths.item_features, "photo")


def read_features(folder: Path, modality: str) -> ItemFeatures:
    """Return the vectors of one modality from a folder of item features."""
    return ItemFeatures(_load(folder / f"{modality}.npy"), read_keys(folder, modality) != b"")


def read_keys(folder: Path, modality: str) -> NDArray[np.bytes_]:
    """Return (n,) the hash of each item's text or photo; empty for an item without one."""
    return _load(folder / f"{modality}_keys.npy")


def _load(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(files.require(path), mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise ArtefactError(f"{path} is damaged ({error}); run the stage `item_features` with --force") from error
    return array
