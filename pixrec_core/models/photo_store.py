"""Photos as the vision tower takes them, decoded once: memory-mapped arrays keyed by what they depend on.

With a trainable vision tower the array holds pixels, which go through the tower at every step. With
a frozen one it holds the tower's features: an item's never change, and encoding it again at every
step would be most of the work (SigLIP at 512 pixels costs about seven times the language model's
share of an item in a 256M model).
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from filelock import FileLock
from numpy.lib.format import open_memmap
from torch import Tensor

from pixrec_core import files, schemas
from pixrec_core.data.images import open_photo
from pixrec_core.models.backbones import Processor
from pixrec_core.models.dual_tower import DualTower
from pixrec_core.models.item_inputs import NO_PHOTO, Ids
from pixrec_core.paths import DatasetPaths
from pixrec_core.progress import track

log = logging.getLogger(__name__)

BATCH = 64  # photos through the vision tower at a time


@dataclass(frozen=True)
class PhotoStore:
    """One array, first axis photos.

    Attributes:
        values: (photos, *shape) float16, pixels or features.
        processor: repeats the side inputs that pixels come with; None where the values are features.
        key: names what the values were made from.
    """

    values: np.ndarray[Any, np.dtype[np.float16]]
    processor: Processor | None
    key: str

    def load(self, rows: Ids) -> dict[str, Tensor]:
        """Some photos as a batch's `photos`: see `DualTower.photo_features`."""
        values = torch.from_numpy(self.values[rows].astype(np.float32))
        if self.processor is None:
            return {"features": values}
        inputs = self.processor.image_inputs(values.flatten(0, 1), len(rows))
        return {**inputs, "count": torch.tensor(len(rows))}


def photo_rows(items: Sequence[dict[str, Any]]) -> tuple[Ids, list[str]]:
    """Row of each item's photo among those there are, -1 without one; and the items that have one."""
    has_photo = np.array([bool(item[schemas.HAS_IMAGE]) for item in items], dtype=bool)
    rows = np.where(has_photo, np.cumsum(has_photo) - 1, NO_PHOTO)
    return rows, [item[schemas.ITEM] for item, has in zip(items, has_photo, strict=True) if has]


def pixel_store(paths: DatasetPaths, with_photo: Sequence[str], processor: Processor) -> PhotoStore:
    """Decoded photos of some items, in their order; made once a dataset and image size."""
    manifest = pl.read_parquet(paths.images_manifest, columns=[schemas.ITEM, "sha256"])
    hashes = dict(manifest.iter_rows())
    settings = processor.image_processor.to_json_string()
    key = _key("pixels", processor.edge, settings, [hashes[item] for item in with_photo])

    def rows() -> Iterator[Any]:
        for item in track(with_photo, "photos decoded", len(with_photo), log):
            yield processor.pixels(open_photo(paths, item)).numpy()

    return PhotoStore(_cached(paths.cache / f"pixels-{key}.npy", len(with_photo), rows), processor, key)


def feature_store(folder: Path, model: DualTower, pixels: PhotoStore) -> PhotoStore:
    """Features of all photos under the model's present vision tower, kept in `folder`."""
    key = _key("features", pixels.key, model.vision_hash())
    values = _cached(folder / f"features-{key}.npy", len(pixels.values), lambda: _features(model, pixels))
    return PhotoStore(values, None, key)


def features_now(model: DualTower, pixels: PhotoStore) -> PhotoStore:
    """The same in memory, for a vision tower that is still learning."""
    return PhotoStore(np.stack(list(_features(model, pixels))), None, "now")


@torch.inference_mode()
def _features(model: DualTower, pixels: PhotoStore) -> Iterator[Any]:
    """Features of each photo in turn, (K, H)."""
    count = len(pixels.values)
    for start in track(range(0, count, BATCH), "photo batches encoded", -(-count // BATCH), log):
        photos = pixels.load(np.arange(start, min(start + BATCH, count)))
        features = model.photo_features({name: value.to(model.device) for name, value in photos.items()})
        assert features is not None, "a batch of photos has features"
        yield from features.half().cpu().numpy()


def _cached(path: Path, count: int, rows: Callable[[], Iterator[Any]]) -> np.ndarray[Any, np.dtype[np.float16]]:
    """Memory-map the array at `path`; where it is not there, fill it row by row first."""
    if not count:
        return np.empty((0, 1), dtype=np.float16)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):  # variants may be made side by side, and share these arrays
        if not path.exists():
            _fill(path, count, rows())
    loaded: np.ndarray[Any, np.dtype[np.float16]] = np.load(path, mmap_mode="r")
    return loaded


def _fill(path: Path, count: int, rows: Iterator[Any]) -> None:
    with files.replacing(path) as temporary:
        first = next(rows)
        array = open_memmap(temporary, mode="w+", dtype=np.float16, shape=(count, *first.shape))
        for n, row in enumerate(chain([first], rows)):
            array[n] = row
        array.flush()


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
