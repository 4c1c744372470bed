"""Items and histories to vectors, in large batches of like length."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pixrec_core import files, schemas
from pixrec_core.engine import LOCAL, Engine
from pixrec_core.errors import ArtefactError
from pixrec_core.models import checkpoint
from pixrec_core.models.collate import Collator, to_device
from pixrec_core.models.dual_tower import DualTower
from pixrec_core.models.photo_store import PhotoStore, feature_file, feature_key, feature_store
from pixrec_core.models.portable import DevicePickle
from pixrec_core.models.tower_inputs import TowerInputs
from pixrec_core.paths import VariantPaths
from pixrec_core.progress import track
from pixrec_core.settings import ModelSettings
from pixrec_core.stages import Stats

log = logging.getLogger(__name__)

T = TypeVar("T")
Vectors = NDArray[np.float32]

#: Tokens of a padded batch. A processor is fastest where what passes between layers stays in its cache: with as many
#: as a GPU wants, `tiny` takes half as long again.
CPU_TOKENS: Final = 2_048
GPU_TOKENS: Final = 16_384
VECTORS = "vectors.safetensors"
ITEMS = "items.parquet"
CHECKPOINT = "checkpoint_sha256"  # in the vectors' header


def encode_items(paths: VariantPaths, engine: Engine) -> Stats:
    """Write the vectors of the whole catalogue, and the photo features that histories will need again."""
    model, processor = checkpoint.load(paths.checkpoint)
    settings, _ = checkpoint.load_settings(paths.checkpoint)
    inputs = TowerInputs.load(paths, model.backbone, processor, settings.item_tokens)
    with files.replacing(paths.item_vectors) as folder:
        folder.mkdir()
        photos = photo_features(_features_folder(settings, paths, folder), model, inputs, engine)
        vectors = item_vectors(model, inputs, photos, engine)
        made_by = {CHECKPOINT: checkpoint.digest(paths.checkpoint)}
        save_file({"vectors": vectors}, folder / VECTORS, metadata=made_by)
        pl.DataFrame({schemas.ITEM: inputs.items}).write_parquet(folder / ITEMS)
    return {"items": len(vectors), "dimension": vectors.shape[1]}


def read_item_vectors(folder: Path) -> tuple[list[str], Vectors]:
    """Item ids and their vectors (N, D), in one order. The vectors stay on disk, mapped into memory.

    Raises:
        MissingArtefactError: no item vectors.
        ArtefactError: the file is damaged, or has other than one vector an item.
    """
    items, path = read_item_ids(folder), files.require(folder / VECTORS)
    try:
        with safe_open(path, "pt") as file:  # of all frameworks, PyTorch alone maps
            vectors: Vectors = file.get_tensor("vectors").numpy()
    except SafetensorError as error:
        raise ArtefactError(f"{path} is damaged ({error}); materialise item_vectors again") from error
    if len(vectors) != len(items):
        raise ArtefactError(
            f"{path} has {len(vectors):,} vectors and {folder / ITEMS} {len(items):,} items; "
            "materialise item_vectors again"
        )
    return items, vectors


def checkpoint_sha256(folder: Path) -> str:
    """Checksum of the checkpoint that item vectors came from."""
    with safe_open(folder / VECTORS, "numpy") as file:
        return str(file.metadata()[CHECKPOINT])


def read_item_ids(folder: Path) -> list[str]:
    """Item ids in the order of their vectors."""
    ids: list[str] = pl.read_parquet(files.require(folder / ITEMS))[schemas.ITEM].to_list()
    return ids


def history_features(
    settings: ModelSettings, paths: VariantPaths, model: DualTower, inputs: TowerInputs
) -> PhotoStore | None:
    """Features of all photos as `encode_items` left them, for reading histories."""
    return photo_features(_features_folder(settings, paths, paths.item_vectors), model, inputs)


def kept_features(settings: ModelSettings, paths: VariantPaths, model: DualTower, inputs: TowerInputs) -> Path | None:
    """The file that `history_features` reads; None where no item has a photo that is read."""
    if inputs.pixels is None:
        return None
    return _features_folder(settings, paths, paths.item_vectors) / feature_file(feature_key(model, inputs.pixels))


def _features_folder(settings: ModelSettings, paths: VariantPaths, own: Path) -> Path:
    """A frozen vision tower's features are kept since training; those of one that learnt belong to its vectors."""
    return paths.dataset.cache if settings.vision == "frozen" else own


def photo_features(folder: Path, model: DualTower, inputs: TowerInputs, engine: Engine = LOCAL) -> PhotoStore | None:
    """Features of all photos under this model, each encoded once; None for a variant without photos."""
    return feature_store(folder, model, inputs.pixels, engine) if inputs.pixels else None


@dataclass(frozen=True)
class Encoder(DevicePickle):
    """A tower, what it reads of each item, and features of all photos; None for a variant without photos."""

    model: DualTower
    inputs: TowerInputs
    photos: PhotoStore | None

    @torch.inference_mode()
    def items(self, numbers: Sequence[int]) -> Vectors:
        """v_T of some items, (I, D)."""
        batch = to_device(self.inputs.collator(self.photos).items(numbers), self.model.device)
        return _numbers(self.model.item_vectors(batch, self.model.photo_features(batch["photos"])))

    @torch.inference_mode()
    def users(self, histories: Sequence[Sequence[int]]) -> Vectors:
        """v_U of some histories, (B, D)."""
        batch = self.inputs.collator(self.photos).histories(histories)
        del batch["spans"]
        batch = to_device(batch, self.model.device)
        return _numbers(self.model.user_vectors(batch, self.model.photo_features(batch["photos"])))


def _numbers(vectors: torch.Tensor) -> Vectors:
    numbers: Vectors = vectors.float().cpu().numpy()
    return numbers


def item_vectors(model: DualTower, inputs: TowerInputs, photos: PhotoStore | None, engine: Engine = LOCAL) -> Vectors:
    """v_T of every item, (N, D)."""
    lengths = [len(block.ids) for block in inputs.inputs.blocks]
    encode = Encoder(model, inputs, photos).items
    most = _batch_tokens(model)
    return _in_batches(range(len(lengths)), lengths, encode, "items encoded", model.config.embedding_dim, most, engine)


@torch.inference_mode()
def content_vector(model: DualTower, collator: Collator) -> Vectors:
    """v_T of a collator's only item by its content alone, (1, D): one from outside the catalogue has no residual."""
    batch = to_device(collator.items([0]), model.device)
    without = torch.zeros(1, 1, device=model.device)
    vector: Vectors = model.item_vectors(batch, model.photo_features(batch["photos"]), without).cpu().numpy()
    return vector


def user_vectors(
    model: DualTower,
    inputs: TowerInputs,
    photos: PhotoStore | None,
    histories: Sequence[Sequence[int]],
    engine: Engine = LOCAL,
) -> Vectors:
    """v_U of every history, (U, D)."""
    lengths = [sum(len(inputs.inputs.blocks[n].ids) for n in history) for history in histories]
    encode = Encoder(model, inputs, photos).users
    most = _batch_tokens(model)
    return _in_batches(histories, lengths, encode, "histories encoded", model.config.embedding_dim, most, engine)


def _batch_tokens(model: DualTower) -> int:
    return CPU_TOKENS if model.device.type == "cpu" else GPU_TOKENS


def _in_batches(
    things: Sequence[T],
    lengths: Sequence[int],
    encode: Callable[[Sequence[T]], Vectors],
    what: str,
    embedding_dim: int,
    most: int,
    engine: Engine,
) -> Vectors:
    """Encode everything, batched by length so that little is padding, and put it back in order.

    Args:
        things: to encode.
        lengths: tokens of each.
        encode: from things to vectors.
        what: is being done.
        embedding_dim: of a vector.
        most: tokens of a padded batch of more than one.
        engine: what maps over the batches.
    """
    order = np.argsort(lengths, kind="stable").tolist()
    batches, batch = [], list[int]()
    for number in order:
        if batch and (len(batch) + 1) * lengths[number] > most:
            batches.append(batch)
            batch = []
        batch.append(number)
    if batch:
        batches.append(batch)
    encoded = engine.map_shards(encode, [[things[number] for number in numbers] for numbers in batches])
    vectors = np.empty((len(lengths), embedding_dim), dtype=np.float32)
    for numbers, part in zip(batches, track(encoded, what + ", batches", len(batches), log), strict=True):
        vectors[numbers] = part
    return vectors
