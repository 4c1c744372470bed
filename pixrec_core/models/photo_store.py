"""Photos as inputs of the vision tower: decoded from their files, or from memory-mapped arrays.

A trainable vision tower needs the pixels of every photo in every step. They are cached as uint8, as in the photo, and
scaled to the image processor's values on loading. A frozen vision tower encodes each photo once, from its file, and
its features are cached: encoding photos again in every step would be most of the work (SigLIP at 512 pixels takes about
seven times as long per item as the language model of a 256M model).
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
from accelerate.utils import send_to_device
from filelock import FileLock
from numpy.lib.format import open_memmap
from PIL import Image
from torch import Tensor

from pixrec_core import files, schemas
from pixrec_core.data.images import open_photo
from pixrec_core.engine import LOCAL, Engine
from pixrec_core.models.backbones import Processor
from pixrec_core.models.dual_tower import DualTower
from pixrec_core.models.item_inputs import NO_PHOTO, Ids
from pixrec_core.models.length_batches import DevicePickle
from pixrec_core.paths import DatasetPaths
from pixrec_core.progress import track

log = logging.getLogger(__name__)

BATCH = 64  # photos per batch of the vision tower


@dataclass(frozen=True)
class PhotoFiles:
    """Photos that are decoded on each access.

    `items` are the ids of their items, in row order; `key` is a hash of the photos and of the settings of the
    processor.
    """

    paths: DatasetPaths
    items: Sequence[str]
    processor: Processor
    key: str

    def __len__(self) -> int:
        return len(self.items)

    def pixels(self, row: int) -> Tensor:
        """`pixel_values` of one photo."""
        return self.processor.pixels(open_photo(self.paths, self.items[row]))

    def load(self, rows: Ids) -> dict[str, Tensor]:
        """Some photos as `photos` of a batch: see `DualTower.photo_features`."""
        return self.processor.image_inputs(torch.cat([self.pixels(row) for row in rows]), len(rows))


@dataclass(frozen=True)
class PixelScale:
    """The linear map of an image processor from a colour value, 0 to 255, to a pixel value: `black` + `step` x colour.

    Both have the shape of one photo's `pixel_values`, so the order of pixels does not matter.
    """

    black: Tensor
    step: Tensor

    @classmethod
    def of(cls, processor: Processor) -> "PixelScale":
        """Measure the map with a black and a white square."""
        edge = processor.edge
        black, white = (processor.pixels(Image.new("RGB", (edge, edge), colour)) for colour in ("black", "white"))
        return cls(black, (white - black) / 255)

    def colours(self, pixels: Tensor) -> Tensor:
        """Colour values, uint8; 0 where all photos have the same pixel value."""
        step = torch.where(self.step == 0, 1, self.step)
        return ((pixels - self.black) / step).round().to(torch.uint8)

    def pixels(self, colours: Tensor) -> Tensor:
        """Pixel values, float32; `colours` may have leading axes."""
        return self.black + self.step * colours


@dataclass(frozen=True)
class PhotoStore:
    """All photos in one array.

    Attributes:
        values: (photos, *shape), pixels or features.
        processor: adds the vision tower's side inputs to pixels; None if the values are features.
        scale: from colour values to pixel values; None if the array needs no conversion.
    """

    values: np.ndarray[Any, Any]
    processor: Processor | None = None
    scale: PixelScale | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A memory-mapped array is pickled as its path, since its content may not fit into memory."""
        file = self.values.filename if isinstance(self.values, np.memmap) else None
        return {**self.__dict__, "values": Path(file) if file else self.values}

    def __setstate__(self, state: dict[str, Any]) -> None:
        values = state["values"]
        self.__dict__.update(state, values=np.load(values, mmap_mode="r") if isinstance(values, Path) else values)

    def __len__(self) -> int:
        return len(self.values)

    def load(self, rows: Ids) -> dict[str, Tensor]:
        """Some photos as `photos` of a batch: see `DualTower.photo_features`."""
        stored = torch.from_numpy(self.values[rows])
        values = self.scale.pixels(stored) if self.scale else stored.float()
        if self.processor is None:
            return {"features": values}
        return self.processor.image_inputs(values.flatten(0, 1), len(rows))


def photo_rows(catalogue: pl.DataFrame) -> tuple[Ids, list[str]]:
    """Row of each item's photo among all photos, or `NO_PHOTO`; and the ids of the items with a photo."""
    has_photo = catalogue[schemas.HAS_IMAGE].to_numpy()
    rows = np.where(has_photo, np.cumsum(has_photo) - 1, NO_PHOTO)
    return rows, catalogue.filter(schemas.HAS_IMAGE)[schemas.ITEM].to_list()


def photo_files(paths: DatasetPaths, with_photo: Sequence[str], processor: Processor) -> PhotoFiles:
    """The stored photos of some items, in the order of their ids `with_photo`."""
    manifest = pl.read_parquet(paths.images_manifest, columns=[schemas.ITEM, "sha256"], glob=False)
    hashes = dict(manifest.iter_rows())
    settings = processor.image_processor.to_json_string()
    key = _hash("photos", processor.edge, settings, [hashes[item] for item in with_photo])
    return PhotoFiles(paths, with_photo, processor, key)


def pixel_store(photos: PhotoFiles) -> PhotoStore:
    """Colour values of all photos, cached per dataset and image processor."""
    scale = PixelScale.of(photos.processor)

    def rows() -> Iterator[Any]:
        for row in track(range(len(photos)), "photos decoded", len(photos), log):
            yield scale.colours(photos.pixels(row)).numpy()

    path = photos.paths.cache / f"pixels-{photos.key}.npy"
    return PhotoStore(_cached(path, len(photos), rows, np.uint8), photos.processor, scale)


def feature_store(folder: Path, model: DualTower, photos: PhotoFiles, engine: Engine = LOCAL) -> PhotoStore:
    """Features of all photos from the model's current vision tower, cached in `folder`."""
    path = folder / feature_file(model, photos)
    return PhotoStore(_cached(path, len(photos), lambda: _features(model, photos, engine), np.float16))


def feature_file(model: DualTower, photos: PhotoFiles) -> str:
    """Name of the file of `feature_store`, with a hash of the photos and of the vision tower's weights."""
    return f"features-{_hash('features', photos.key, model.vision_hash())}.npy"


def current_features(model: DualTower, photos: PhotoStore, engine: Engine = LOCAL) -> PhotoStore:
    """Features from a trainable vision tower, in memory; a store of features is returned as it is."""
    if photos.processor is None:
        return photos
    return PhotoStore(np.stack(list(_features(model, photos, engine))))


@dataclass(frozen=True)
class PhotoEncoder(DevicePickle):
    """A vision tower, and the photos to encode."""

    model: DualTower
    photos: PhotoFiles | PhotoStore

    @torch.inference_mode()
    def __call__(self, rows: Ids) -> np.ndarray[Any, Any]:
        """Features of some photos, (J, K, F) float16."""
        features = self.model.photo_features(send_to_device(self.photos.load(rows), self.model.device))
        assert features is not None, "a batch of photos has features"
        values: np.ndarray[Any, Any] = features.half().cpu().numpy()
        return values


def _features(model: DualTower, photos: PhotoFiles | PhotoStore, engine: Engine) -> Iterator[Any]:
    """Features (K, F) of one photo after the other."""
    batches = [np.arange(start, min(start + BATCH, len(photos))) for start in range(0, len(photos), BATCH)]
    encoded = engine.map_shards(PhotoEncoder(model, photos), batches)
    for features in track(encoded, "photo batches encoded", len(batches), log):
        yield from features


def _cached(path: Path, count: int, rows: Callable[[], Iterator[Any]], dtype: type[np.generic]) -> np.ndarray[Any, Any]:
    """The memory-mapped array at `path`, which is first written row by row if it does not exist."""
    if not path.exists():  # no lock for an existing file: its folder may be read-only in serving
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # variants share the array and may run at the same time
            if not path.exists():
                _write_array(path, count, rows(), dtype)
    loaded: np.ndarray[Any, Any] = np.load(path, mmap_mode="r")
    return loaded


def _write_array(path: Path, count: int, rows: Iterator[Any], dtype: type[np.generic]) -> None:
    with files.replacing(path) as temporary:
        first = next(rows)
        array = open_memmap(temporary, mode="w+", dtype=dtype, shape=(count, *first.shape))
        for n, row in enumerate(chain([first], rows)):
            array[n] = row
        array.flush()


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
