"""Encode items and histories with the two towers, in batches of similar length."""

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, TypeVar

import numpy as np
import polars as pl
import torch
from accelerate.utils import send_to_device
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pixrec_core import files, schemas
from pixrec_core.engine import LOCAL, Engine
from pixrec_core.errors import ArtefactError
from pixrec_core.models import checkpoint
from pixrec_core.models.collate import Collator
from pixrec_core.models.dual_tower import DevicePickle, DualTower
from pixrec_core.models.photo_store import PhotoStore, feature_file, feature_store
from pixrec_core.models.tower_inputs import TowerInputs
from pixrec_core.paths import VariantPaths
from pixrec_core.progress import track
from pixrec_core.settings import ModelSettings
from pixrec_core.stages import Stats

log = logging.getLogger(__name__)

T = TypeVar("T")
Vectors = NDArray[np.float32]

#: Padded tokens per batch. On a CPU, small batches keep activations in its cache: `tiny` takes half as long again
#: with GPU-sized ones.
CPU_TOKENS: Final = 2_048
GPU_TOKENS: Final = 16_384
VECTORS = "vectors.safetensors"
ITEMS = "items.parquet"
CHECKPOINT = "checkpoint_sha256"  # key in the header of the vectors' file


def encode_items(paths: VariantPaths, engine: Engine) -> Stats:
    """Write the vectors of the whole catalogue, and the photo features that encoding histories needs later."""
    model, processor = checkpoint.load(paths.checkpoint)
    settings, _ = checkpoint.load_settings(paths.checkpoint)
    inputs = TowerInputs.load(paths, model.backbone, processor, settings.item_tokens)
    with files.replacing(paths.item_vectors) as folder:
        folder.mkdir()
        features = _features_folder(settings, paths, folder)
        photos = feature_store(features, model, inputs.pixels, engine) if inputs.pixels else None
        vectors = Encoder(model, inputs, photos).item_vectors(engine)
        header = {CHECKPOINT: checkpoint.weights_sha256(paths.checkpoint)}
        save_file({"vectors": vectors}, folder / VECTORS, metadata=header)
        pl.DataFrame({schemas.ITEM: inputs.items}).write_parquet(folder / ITEMS)
    return {"items": len(vectors), "dimension": vectors.shape[1]}


def read_item_vectors(folder: Path) -> tuple[list[str], Vectors]:
    """Item ids (N) and their vectors (N, D), in the same order. The vectors are memory-mapped.

    Raises:
        MissingArtefactError: there are no item vectors.
        ArtefactError: a file is damaged, or the vectors are not one per item.
    """
    items, path = read_item_ids(folder), files.require(folder / VECTORS)
    try:
        with safe_open(path, "pt") as file:  # only the PyTorch loader maps the file instead of reading it
            vectors: Vectors = file.get_tensor("vectors").numpy()
    except SafetensorError as error:
        raise ArtefactError(f"{path} is damaged ({error}); materialise item_vectors again") from error
    if vectors.ndim != 2 or vectors.dtype != np.float32:
        raise ArtefactError(
            f"{path} is damaged: vectors are {vectors.dtype} {vectors.shape}; materialise item_vectors again"
        )
    if len(vectors) != len(items):
        raise ArtefactError(
            f"{path} has {len(vectors):,} vectors but {folder / ITEMS} has {len(items):,} items; "
            "materialise item_vectors again"
        )
    return items, vectors


def read_checkpoint_sha256(folder: Path) -> str:
    """Checksum of the checkpoint that encoded the item vectors.

    Raises:
        ArtefactError: the file of vectors is damaged.
    """
    path = files.require(folder / VECTORS)
    try:
        with safe_open(path, "numpy") as file:
            return str(file.metadata()[CHECKPOINT])
    except (SafetensorError, KeyError, TypeError) as error:
        raise ArtefactError(f"{path} is damaged ({error}); materialise item_vectors again") from error


def read_item_ids(folder: Path) -> list[str]:
    """Item ids in the order of their vectors."""
    path = files.require(folder / ITEMS)
    try:
        ids: list[str] = pl.read_parquet(path, glob=False)[schemas.ITEM].to_list()
    except pl.exceptions.PolarsError as error:
        raise ArtefactError(f"{path} is damaged ({error}); materialise item_vectors again") from error
    return ids


def photo_features_path(
    settings: ModelSettings, paths: VariantPaths, model: DualTower, inputs: TowerInputs
) -> Path | None:
    """The file of photo features that `Encoder.load` reads; None for a variant or dataset without photos."""
    if inputs.pixels is None:
        return None
    return _features_folder(settings, paths, paths.item_vectors) / feature_file(model, inputs.pixels)


def _features_folder(settings: ModelSettings, paths: VariantPaths, vectors_folder: Path) -> Path:
    """Features of a frozen vision tower are shared by all variants; those of a trained one belong to its vectors."""
    return paths.dataset.cache if settings.vision == "frozen" else vectors_folder


@dataclass(frozen=True)
class Encoder(DevicePickle):
    """A dual tower with its inputs: encodes items to v_T and histories to v_U.

    Attributes:
        model: the dual tower.
        inputs: tokens and photos of each item.
        photos: features of all photos; None for a variant without photos.
        max_history_len: the encoder reads this many items of a history, the newest ones.
    """

    model: DualTower
    inputs: TowerInputs
    photos: PhotoStore | None
    max_history_len: int = sys.maxsize

    @classmethod
    def load(cls, paths: VariantPaths) -> Self:
        """From a variant's checkpoint, the catalogue, and the photo features that `encode_items` wrote."""
        model, processor = checkpoint.load(paths.checkpoint)
        settings, training = checkpoint.load_settings(paths.checkpoint)
        inputs = TowerInputs.load(paths, model.backbone, processor, settings.item_tokens)
        features = _features_folder(settings, paths, paths.item_vectors)
        photos = feature_store(features, model, inputs.pixels, LOCAL) if inputs.pixels else None
        return cls(model, inputs, photos, training.max_history_len)

    def item_vectors(self, engine: Engine = LOCAL) -> Vectors:
        """v_T of every item, (N, D)."""
        lengths = [len(block.ids) for block in self.inputs.inputs]
        return self._encode_all(self.encode_item_batch, range(len(lengths)), lengths, "items encoded", engine)

    def user_vectors(self, histories: Sequence[Sequence[int]], engine: Engine = LOCAL) -> Vectors:
        """v_U of every history, (U, D)."""
        histories, blocks = self.crop(histories), self.inputs.inputs
        lengths = [sum(len(blocks[item].ids) for item in history) for history in histories]
        return self._encode_all(self.encode_history_batch, histories, lengths, "histories encoded", engine)

    def crop(self, histories: Sequence[Sequence[int]]) -> list[Sequence[int]]:
        """The newest `max_history_len` items of each history."""
        return [history[-self.max_history_len :] for history in histories]

    @torch.inference_mode()
    def encode_item_batch(self, items: Sequence[int]) -> Vectors:
        """v_T of some items, (B, D)."""
        batch = send_to_device(self.inputs.collator(self.photos).item_batch(items), self.model.device)
        return _to_numpy(self.model.item_vectors(batch, self.model.photo_features(batch["photos"])))

    @torch.inference_mode()
    def encode_history_batch(self, histories: Sequence[Sequence[int]]) -> Vectors:
        """v_U of some histories, (B, D)."""
        batch = send_to_device(self.inputs.collator(self.photos).history_batch(histories), self.model.device)
        return _to_numpy(self.model.user_vectors(batch, self.model.photo_features(batch["photos"])))

    @torch.inference_mode()
    def encode_new_item(self, collator: Collator) -> Vectors:
        """v_T of a collator's only item, (1, D). An item outside the catalogue has no item-id embedding."""
        batch = send_to_device(collator.item_batch([0]), self.model.device)
        no_id_embedding = torch.zeros(1, 1, device=self.model.device)
        return _to_numpy(self.model.item_vectors(batch, self.model.photo_features(batch["photos"]), no_id_embedding))

    def _encode_all(
        self,
        encode_batch: Callable[[Sequence[T]], Vectors],
        inputs: Sequence[T],
        lengths: Sequence[int],
        progress: str,
        engine: Engine,
    ) -> Vectors:
        """Vectors of all inputs in their order, (len(inputs), D); `lengths` are in tokens."""
        max_tokens = CPU_TOKENS if self.model.device.type == "cpu" else GPU_TOKENS
        batches = length_batches(lengths, max_tokens)
        encoded = engine.map_shards(encode_batch, [[inputs[row] for row in rows] for rows in batches])
        vectors = np.empty((len(lengths), self.model.config.embedding_dim), dtype=np.float32)
        for rows, part in zip(batches, track(encoded, progress + ", batches", len(batches), log), strict=True):
            vectors[rows] = part
        return vectors


def length_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of inputs in batches, shortest inputs first, so that little is padding.

    Args:
        lengths: tokens of each input.
        max_tokens: most tokens of a batch after padding. A longer input forms a batch alone.
    """
    batches, batch = [], list[int]()
    for row in np.argsort(lengths, kind="stable").tolist():
        if batch and (len(batch) + 1) * lengths[row] > max_tokens:
            batches.append(batch)
            batch = []
        batch.append(row)
    return [*batches, batch] if batch else batches


def _to_numpy(vectors: torch.Tensor) -> Vectors:
    array: Vectors = vectors.float().cpu().numpy()
    return array
