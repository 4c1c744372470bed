"""Photos as the vision tower takes them: decoded from their files, or from memory-mapped arrays made once.

A trainable vision tower sees every photo at every step, so its pixels are kept: one byte a colour
of a pixel, as a photo has it, which becomes the image processor's numbers on loading. A frozen one
sees each photo once, straight from its file, and its features are kept: they never change, and
encoding them again at every step would be most of the work (SigLIP at 512 pixels costs about seven
times the language model's share of an item in a 256M model).
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
from PIL import Image
from torch import Tensor

from pixrec_core import files, schemas
from pixrec_core.data.images import open_photo
from pixrec_core.engine import LOCAL, Engine
from pixrec_core.models.backbones import Processor
from pixrec_core.models.dual_tower import DevicePickle, DualTower
from pixrec_core.models.item_inputs import NO_PHOTO, Ids
from pixrec_core.paths import DatasetPaths
from pixrec_core.progress import track

log = logging.getLogger(__name__)

BATCH = 64  # photos through the vision tower at a time


@dataclass(frozen=True)
class PhotoFiles:
    """Photos that are decoded each time they are asked for.

    Attributes:
        paths: of the dataset.
        items: whose photos these are, in order.
        processor: of the backbone.
        key: names photos and processor.
    """

    paths: DatasetPaths
    items: Sequence[str]
    processor: Processor
    key: str

    @property
    def count(self) -> int:
        return len(self.items)

    def pixels(self, row: int) -> Tensor:
        """One photo as the processor's `pixel_values`."""
        return self.processor.pixels(open_photo(self.paths, self.items[row]))

    def load(self, rows: Ids) -> dict[str, Tensor]:
        """Some photos as a batch's `photos`: see `DualTower.photo_features`."""
        return pixel_inputs(self.processor, torch.cat([self.pixels(row) for row in rows]), len(rows))


@dataclass(frozen=True)
class PixelScale:
    """How an image processor turns a colour of a pixel, 0 to 255, into a number: `black` + `step` x colour.

    Both have the shape of one photo's `pixel_values`, whatever order a family puts its pixels in.
    """

    black: Tensor
    step: Tensor

    @classmethod
    def of(cls, processor: Processor) -> "PixelScale":
        """Read it off a black and a white square."""
        edge = processor.edge
        black, white = (processor.pixels(Image.new("RGB", (edge, edge), colour)) for colour in ("black", "white"))
        return cls(black, (white - black) / 255)

    def colours(self, pixels: Tensor) -> Tensor:
        """Numbers to colours, uint8; where a number is the same for every photo, 0."""
        step = torch.where(self.step == 0, 1, self.step)
        return ((pixels - self.black) / step).round().to(torch.uint8)

    def pixels(self, colours: Tensor) -> Tensor:
        """Colours to numbers, float32; any leading axes."""
        return self.black + self.step * colours


@dataclass(frozen=True)
class PhotoStore:
    """One array, first axis photos.

    Attributes:
        values: (photos, *shape), pixels or features.
        processor: repeats the side inputs that pixels come with; None where the values are features.
        key: names what the values were made from.
        scale: from colours to the processor's numbers; None where the values are the numbers themselves.
    """

    values: np.ndarray[Any, Any]
    processor: Processor | None
    key: str
    scale: PixelScale | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Another process maps the same file, rather than be sent what may be more than its memory."""
        file = self.values.filename if isinstance(self.values, np.memmap) else None
        return {**self.__dict__, "values": Path(file) if file else self.values}

    def __setstate__(self, state: dict[str, Any]) -> None:
        values = state["values"]
        self.__dict__.update(state, values=np.load(values, mmap_mode="r") if isinstance(values, Path) else values)

    @property
    def count(self) -> int:
        return len(self.values)

    def load(self, rows: Ids) -> dict[str, Tensor]:
        """Some photos as a batch's `photos`: see `DualTower.photo_features`."""
        values = torch.from_numpy(self.values[rows])
        numbers = self.scale.pixels(values) if self.scale else values.float()
        if self.processor is None:
            return {"features": numbers}
        return pixel_inputs(self.processor, numbers.flatten(0, 1), len(rows))


def pixel_inputs(processor: Processor, pixels: Tensor, count: int) -> dict[str, Tensor]:
    """Pixels of `count` photos, joined on the first axis, as a batch's `photos`: see `DualTower.photo_features`."""
    return {**processor.image_inputs(pixels, count), "count": torch.tensor(count)}


def photo_rows(catalogue: pl.DataFrame) -> tuple[Ids, list[str]]:
    """Row of each item's photo among those there are, -1 without one; and the items that have one."""
    has_photo = catalogue[schemas.HAS_IMAGE].to_numpy()
    rows = np.where(has_photo, np.cumsum(has_photo) - 1, NO_PHOTO)
    return rows, catalogue.filter(schemas.HAS_IMAGE)[schemas.ITEM].to_list()


def photo_files(paths: DatasetPaths, with_photo: Sequence[str], processor: Processor) -> PhotoFiles:
    """The stored photos of some items, in their order."""
    manifest = pl.read_parquet(paths.images_manifest, columns=[schemas.ITEM, "sha256"])
    hashes = dict(manifest.iter_rows())
    settings = processor.image_processor.to_json_string()
    key = _key("photos", processor.edge, settings, [hashes[item] for item in with_photo])
    return PhotoFiles(paths, with_photo, processor, key)


def pixel_store(photos: PhotoFiles) -> PhotoStore:
    """Colours of all photos, made once a dataset and image processor."""
    scale = PixelScale.of(photos.processor)

    def rows() -> Iterator[Any]:
        for row in track(range(photos.count), "photos decoded", photos.count, log):
            yield scale.colours(photos.pixels(row)).numpy()

    path = photos.paths.cache / f"pixels-{photos.key}.npy"
    return PhotoStore(_cached(path, photos.count, rows, np.uint8), photos.processor, photos.key, scale)


def feature_store(folder: Path, model: DualTower, photos: PhotoFiles, engine: Engine = LOCAL) -> PhotoStore:
    """Features of all photos under the model's present vision tower, kept in `folder`."""
    key = feature_key(model, photos)
    path = folder / feature_file(key)
    return PhotoStore(_cached(path, photos.count, lambda: _features(model, photos, engine), np.float16), None, key)


def feature_key(model: DualTower, photos: PhotoFiles) -> str:
    """Names the features of these photos under the model's present vision tower."""
    return _key("features", photos.key, model.vision_hash())


def feature_file(key: str) -> str:
    """Name of the file that `feature_store` keeps features in."""
    return f"features-{key}.npy"


def features_now(model: DualTower, photos: PhotoStore, engine: Engine = LOCAL) -> PhotoStore:
    """Features under a vision tower that is still learning, in memory; those of a frozen one as they are."""
    if photos.processor is None:
        return photos
    return PhotoStore(np.stack(list(_features(model, photos, engine))), None, "now")


@dataclass(frozen=True)
class PhotoEncoder(DevicePickle):
    """A vision tower and the photos that it is to encode."""

    model: DualTower
    photos: PhotoFiles | PhotoStore

    @torch.inference_mode()
    def __call__(self, rows: Ids) -> np.ndarray[Any, Any]:
        """Features of some photos, (J, K, H) in half precision."""
        batch = {name: value.to(self.model.device) for name, value in self.photos.load(rows).items()}
        features = self.model.photo_features(batch)
        assert features is not None, "a batch of photos has features"
        values: np.ndarray[Any, Any] = features.half().cpu().numpy()
        return values


def _features(model: DualTower, photos: PhotoFiles | PhotoStore, engine: Engine) -> Iterator[Any]:
    """Features of each photo in turn, (K, H)."""
    batches = [np.arange(start, min(start + BATCH, photos.count)) for start in range(0, photos.count, BATCH)]
    encoded = engine.map_shards(PhotoEncoder(model, photos), batches)
    for features in track(encoded, "photo batches encoded", len(batches), log):
        yield from features


def _cached(path: Path, count: int, rows: Callable[[], Iterator[Any]], dtype: type[np.generic]) -> np.ndarray[Any, Any]:
    """Memory-map the array at `path`; where it is not there, fill it row by row first."""
    if not count:
        return np.empty((0, 1), dtype=dtype)
    if not path.exists():  # what serves may lie where nothing can be written, a lock neither
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # variants may be made side by side, and share these arrays
            if not path.exists():
                _fill(path, count, rows(), dtype)
    loaded: np.ndarray[Any, Any] = np.load(path, mmap_mode="r")
    return loaded


def _fill(path: Path, count: int, rows: Iterator[Any], dtype: type[np.generic]) -> None:
    with files.replacing(path) as temporary:
        first = next(rows)
        array = open_memmap(temporary, mode="w+", dtype=dtype, shape=(count, *first.shape))
        for n, row in enumerate(chain([first], rows)):
            array[n] = row
        array.flush()


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
