"""The stage `item_features`: each distinct text and photo of the catalogue is encoded once.

Unless the encoder was fitted on the catalogue, vectors of unchanged texts and photos are copied from the previous
build. Finished shards of a killed build are kept in the cache, so the next build continues after them.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final
from zipfile import BadZipFile

import numpy as np
import polars as pl
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from pixrec_core import files, prompts
from pixrec_core.data.images import open_photo
from pixrec_core.data.item_features import read_features, read_keys
from pixrec_core.data.sequences import read_items
from pixrec_core.engine import Engine
from pixrec_core.errors import PixRecError
from pixrec_core.models.encoders import create_encoder
from pixrec_core.models.encoders.base import ENCODER_FILE, ItemEncoder, Modality, Vectors
from pixrec_core.paths import DatasetPaths
from pixrec_core.progress import track
from pixrec_core.schemas import HAS_IMAGE, ITEM, TRAIN_COUNT
from pixrec_core.settings import ModelSettings
from pixrec_core.stages import Stats

SHARD: Final[dict[Modality, int]] = {"text": 512, "photo": 128}  # seconds of work for a large model on a CPU
ROWS: Final = 8192  # of the previous build that are copied at once
KEY_BYTES: Final = 32  # hexadecimal digits of SHA-256: 128 bits

Keys = NDArray[np.bytes_]
log = logging.getLogger(__name__)


def build_item_features(settings: ModelSettings, paths: DatasetPaths, engine: Engine) -> Stats:
    """Write the vectors of all texts and photos of the catalogue, with their encoders.

    Raises:
        MissingArtefactError: the stage `sequences` has not run, or a photo is missing.
        ArtefactError: a photo is damaged.
        SettingsError: an encoder is unknown, or its extra is not installed.
        BackboneError: a model was not found, or PixRec cannot use it.
    """
    catalogue = read_items(paths)
    texts = [prompts.item_text(item) for item in catalogue.iter_rows(named=True)]
    names = {"text": settings.text_encoder, "photo": settings.photo_encoder}

    def create(modality: Modality) -> ItemEncoder:
        return create_encoder(names[modality], modality, lambda: _sold(texts, catalogue), settings.item_tokens)

    with files.replacing(paths.item_features) as folder:
        folder.mkdir()
        build = _Build(paths, folder, engine)
        stats = {
            "text": build.write(
                "text",
                np.array([_key(text) for text in texts], f"S{KEY_BYTES}"),
                create,
                texts,
                _encode_texts,
                sizes=[len(text) for text in texts],
            ),
            "photo": build.write(
                "photo",
                _photo_keys(paths, catalogue),
                create,
                catalogue[ITEM].to_list(),
                partial(_encode_photos, paths),
                sizes=[1] * catalogue.height,
            ),
        }
    for modality in SHARD:
        files.remove(_unfinished(paths, modality))
    return {"items": catalogue.height, **stats}


@dataclass(frozen=True)
class _Build:
    """One build of item features, into `folder`; `paths` has the previous build."""

    paths: DatasetPaths
    folder: Path
    engine: Engine

    def write(
        self,
        modality: Modality,
        keys: Keys,
        create: Callable[[Modality], ItemEncoder],
        inputs: Sequence[str],
        encode: Callable[[ItemEncoder, Sequence[str]], Vectors],
        sizes: Sequence[int],
    ) -> Stats:
        """Write the files of one modality.

        Args:
            modality: text or photo.
            keys: (n,) hash of each item's text or photo; empty for none.
            create: returns the encoder of a modality; not called if no item has a text or photo.
            inputs: (n,) inputs of `encode`.
            encode: returns the vectors of inputs.
            sizes: (n,) sort keys of the inputs, so that the inputs of a shard are similar.

        Returns:
            encoder, dimensions, and the numbers of items with a text or photo, of distinct texts or photos, and of new
            ones, which were encoded.
        """
        np.save(self.folder / f"{modality}_keys.npy", keys)
        distinct, first, inverse, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        known = distinct != b""
        path = self.folder / f"{modality}.npy"
        if not known.any():
            np.save(path, np.zeros((len(keys), 1), np.float32))
            return {"encoder": None, "dimensions": 1, "items": 0, "distinct": 0, "encoded": 0}
        encoder = create(modality)
        saved = self.folder / f"{modality}_encoder"
        saved.mkdir()
        encoder.save(saved)
        dimensions = encoder.dimensions[modality]
        values = open_memmap(path, "w+", np.float32, (len(keys), dimensions))
        rows, ends = np.argsort(inverse, kind="stable"), np.cumsum(counts)
        done = ~known

        def put(numbers: NDArray[np.int64], vectors: Vectors) -> None:
            """Write the vectors of distinct texts or photos to the rows of their items."""
            for number, vector in zip(numbers, vectors, strict=True):
                values[rows[ends[number] - counts[number] : ends[number]]] = vector
            done[numbers] = True

        if not encoder.fitted:
            for found, vectors in self._earlier(modality, encoder):
                numbers = np.searchsorted(distinct, found).clip(max=len(distinct) - 1)
                use = (distinct[numbers] == found) & ~done[numbers]
                put(numbers[use], vectors[use])
        missing = np.flatnonzero(~done)
        missing = missing[np.argsort(np.array(sizes)[first[missing]], kind="stable")]
        shards = [missing[start : start + SHARD[modality]] for start in range(0, len(missing), SHARD[modality])]
        contents = [[inputs[row] for row in first[shard]] for shard in shards]
        encoded = self.engine.map_shards(partial(encode, encoder), contents)
        progress = track(encoded, f"{modality}s encoded, shards", len(shards), log)
        for shard, vectors in zip(shards, progress, strict=True):
            put(shard, vectors)
            if not encoder.fitted:
                self._keep(modality, encoder, distinct[shard], vectors)
        values.flush()
        return {
            "encoder": encoder.description.get("name", encoder.description["encoder"]),
            "dimensions": dimensions,
            "items": int((keys != b"").sum()),
            "distinct": int(known.sum()),
            "encoded": len(missing),
        }

    def _earlier(self, modality: Modality, encoder: ItemEncoder) -> Iterator[tuple[Keys, Vectors]]:
        """Yield keys and vectors of the same encoder, from the previous build and an unfinished one."""
        keys, values = self._previous(modality, encoder)
        for start in range(0, len(keys), ROWS):
            yield keys[start : start + ROWS], values[start : start + ROWS]
        for path in sorted(_unfinished(self.paths, modality).glob(f"{_identity(encoder)}-*.npz")):
            try:
                with path.open("rb") as file, np.load(file) as shard:
                    keys, values = shard["keys"], shard["vectors"]
            except (ValueError, EOFError, BadZipFile):  # damaged, as by a loss of power
                continue
            yield keys, values

    def _previous(self, modality: Modality, encoder: ItemEncoder) -> tuple[Keys, Vectors]:
        """Return keys and vectors of the previous build; empty if its encoder differs or a file is damaged."""
        folder, size = self.paths.item_features, encoder.dimensions[modality]
        with suppress(PixRecError):
            if files.read_json(folder / f"{modality}_encoder" / ENCODER_FILE) == encoder.description:
                keys, values = read_keys(folder, modality), read_features(folder, modality).values
                if values.shape == (len(keys), size):
                    return keys, values
        return np.zeros(0, f"S{KEY_BYTES}"), np.zeros((0, size), np.float32)

    def _keep(self, modality: Modality, encoder: ItemEncoder, keys: Keys, vectors: Vectors) -> None:
        """Save a finished shard: if this build is killed, the next one continues after it."""
        path = _unfinished(self.paths, modality) / f"{_identity(encoder)}-{keys[0].decode()}.npz"
        with files.replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, keys=keys, vectors=vectors)


def _encode_texts(encoder: ItemEncoder, texts: Sequence[str]) -> Vectors:
    return encoder.encode_texts(texts)


def _encode_photos(paths: DatasetPaths, encoder: ItemEncoder, items: Sequence[str]) -> Vectors:
    return encoder.encode_photos([open_photo(paths, item) for item in items])


def _sold(texts: Sequence[str], catalogue: pl.DataFrame) -> list[str]:
    """Return the texts of items in training sequences: later ones would leak into the fit."""
    return [text for text, count in zip(texts, catalogue[TRAIN_COUNT], strict=True) if count > 0 and text]


def _key(text: str) -> str:
    """Return the hash of a text; empty for an empty one."""
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_BYTES] if text else ""


def _photo_keys(paths: DatasetPaths, catalogue: pl.DataFrame) -> Keys:
    """Return (n,) the hash of each stored photo; empty for an item without one."""
    if not catalogue[HAS_IMAGE].any():
        return np.full(catalogue.height, b"", f"S{KEY_BYTES}")
    manifest = pl.scan_parquet(files.require(paths.images_manifest), glob=False).select(ITEM, "sha256").collect()
    found = catalogue.select(ITEM, HAS_IMAGE).join(manifest, on=ITEM, how="left", maintain_order="left")
    keys = found.select(pl.when(HAS_IMAGE).then(pl.col("sha256").str.head(KEY_BYTES)).fill_null("")).to_series()
    return keys.to_numpy().astype(f"S{KEY_BYTES}")


def _unfinished(paths: DatasetPaths, modality: Modality) -> Path:
    return paths.cache / f"{modality}-features"


def _identity(encoder: ItemEncoder) -> str:
    """Return a hash of what determines the vectors."""
    return hashlib.sha256(json.dumps(encoder.description, sort_keys=True).encode()).hexdigest()[:16]
