"""Encode items and histories with the two towers, in batches of similar length.

An `ItemsEncoder` computes the vectors of all items in both roles once, and histories from those of their items. The
`Encoder` of `retrieval.token_encoder` reads the tokens of whole histories; it is imported where it is needed, since it
needs transformers, which takes two seconds to import.

Shapes: N items, D embedding size, B histories of at most L items.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pixrec_core import files, schemas
from pixrec_core.data.item_features import ItemFeatures
from pixrec_core.data.sequences import catalogue_digest, read_items
from pixrec_core.engine import LOCAL, Engine
from pixrec_core.errors import ArtefactError
from pixrec_core.models import checkpoint
from pixrec_core.models.backbones import Processor
from pixrec_core.models.collate import Batch, Collator
from pixrec_core.models.frozen_features import FrozenEncoders, feature_table, variant_features
from pixrec_core.models.items_collate import FeatureTable
from pixrec_core.models.items_layers import ItemsLayers
from pixrec_core.models.length_batches import DevicePickle, Vectors, encode_all, to_numpy
from pixrec_core.paths import VariantPaths
from pixrec_core.ranking_table import id_lists
from pixrec_core.settings import ModelSettings
from pixrec_core.stages import Stats

if TYPE_CHECKING:
    from pixrec_core.retrieval.token_encoder import Encoder

__all__ = ["ItemSource", "ItemsEncoder", "Vectors", "encode_items", "load_encoder", "newest"]

VECTORS = "vectors.safetensors"
HISTORY_VECTORS = "history_vectors"  # array of the same file, for `user_encoder = "items"`
ITEMS = "items.parquet"
CHECKPOINT = "checkpoint_sha256"  # key in the header of the vectors' file
VALUES_PER_BATCH = 4_000_000  # of padded item vectors, 16 MB

#: Inputs of all items of a catalogue: frozen features, or tokens and photos.
ItemSource = FeatureTable | Collator


def newest(histories: Sequence[Sequence[int]], count: int) -> list[Sequence[int]]:
    """Return the newest `count` items of each history."""
    return [history[-count:] for history in histories]


@dataclass(frozen=True)
class BothRoles(DevicePickle):
    """Encodes batches of items in both roles; can be sent to another process."""

    model: ItemsLayers
    source: ItemSource

    @torch.inference_mode()
    def __call__(self, numbers: Sequence[int]) -> Vectors:
        """Return (B, 2, D): vectors of some items as candidates and as parts of a history."""
        from accelerate.utils import send_to_device

        batch = send_to_device(self.source.item_batch(np.asarray(numbers, np.int64)), self.model.device)
        contents, index = self.model.contents(batch), batch["numbers"]
        roles = [self.model.item_vectors(contents, index), self.model.history_vectors(contents, index)]
        return to_numpy(torch.stack(roles, dim=1))


@dataclass(frozen=True)
class ItemsEncoder:
    """An items tower with the vectors of all items.

    Attributes:
        model: the tower, on any device.
        items: ids.
        candidate_vectors: (N, D) of the items as candidates.
        history_vectors: (N, D) of the items as parts of a history.
        max_history_len: the tower reads this many items of a history, the newest ones.
    """

    model: ItemsLayers
    items: list[str]
    candidate_vectors: Vectors
    history_vectors: Vectors
    max_history_len: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_history_len", self.model.config.max_history_len)

    @classmethod
    def encode(cls, model: ItemsLayers, items: list[str], source: ItemSource, engine: Engine = LOCAL) -> "ItemsEncoder":
        """Encode all items in both roles."""
        numbers = range(len(items))
        both = encode_all(BothRoles(model, source), numbers, source.lengths, model.device, "items encoded", engine)
        return cls(model, items, np.ascontiguousarray(both[:, 0]), np.ascontiguousarray(both[:, 1]))

    @property
    def reads_photos(self) -> bool:
        """Whether the tower reads photos: not in text_only, and not of a dataset without photos."""
        return bool(self.model.config.reads_photos)

    def numbers(self, sequences: pl.Series) -> pl.Series:
        """Return lists of item numbers from lists of item ids."""
        return id_lists(sequences, pl.Series(self.items))

    def item_vectors(self, engine: Engine = LOCAL) -> Vectors:
        """Return (N, D): every item as a candidate."""
        del engine  # they are encoded already
        return self.candidate_vectors

    def user_vectors(
        self,
        histories: Sequence[Sequence[int]],
        engine: Engine = LOCAL,
        times: Sequence[Sequence[int]] | None = None,
    ) -> Vectors:
        """Return (U, D): the vector of every history.

        Args:
            histories: item numbers, oldest first; none is empty.
            engine: not used: a user costs less than sending the item vectors to another process.
            times: milliseconds of each item; by default all items have the same time.
        """
        del engine
        histories = newest(histories, self.max_history_len)
        lengths = np.array([len(history) for history in histories])
        vectors = np.empty((len(histories), self.history_vectors.shape[1]), np.float32)
        order = np.argsort(lengths, kind="stable")
        size = max(1, VALUES_PER_BATCH // (max(lengths, default=1) * vectors.shape[1]))
        for rows in (order[start : start + size] for start in range(0, len(order), size)):
            given = None if times is None else newest([times[row] for row in rows], self.max_history_len)
            vectors[rows] = self._encode_batch([histories[row] for row in rows], given)
        return vectors

    @torch.inference_mode()
    def _encode_batch(self, histories: Sequence[Sequence[int]], times: Sequence[Sequence[int]] | None) -> Vectors:
        lengths = torch.tensor([len(history) for history in histories])
        real = torch.arange(int(lengths.max())) < lengths[:, None]
        items, padded = np.zeros(real.shape, np.int64), torch.zeros(real.shape, dtype=torch.long)
        items[real.numpy()] = np.concatenate(histories)
        if times is not None:
            padded[real] = torch.from_numpy(np.concatenate(times).astype(np.int64))
        vectors = torch.from_numpy(self.history_vectors[items])
        inputs = (each.to(self.model.device) for each in (vectors, padded, lengths))
        return to_numpy(self.model.user_vectors(*inputs))

    @torch.inference_mode()
    def encode_new_item(self, item: Batch) -> Vectors:
        """Return (1, D): the only item of a batch as a candidate, without an item-id embedding."""
        from accelerate.utils import send_to_device

        batch = send_to_device(item, self.model.device)
        no_id_embedding = torch.zeros(1, 1, device=self.model.device)
        return to_numpy(self.model.item_vectors(self.model.contents(batch), batch["numbers"], no_id_embedding))


def encode_items(paths: VariantPaths, engine: Engine, features: Mapping[str, ItemFeatures] | None = None) -> Stats:
    """Write the vectors of the whole catalogue, and what encoding histories needs later.

    That is the vectors of items as parts of a history, or photo features for `user_encoder = "tokens"`. `features` of
    frozen encoders, by modality, are those of the stage `item_features` by default.

    Raises:
        MissingArtefactError: there is no checkpoint, or nothing for it to read.
        ArtefactError: a file is damaged, or the checkpoint has id vectors of the items of another catalogue.
    """
    model, processor = checkpoint.load_for_inference(paths.checkpoint)
    settings, _ = checkpoint.load_settings(paths.checkpoint)
    with files.replacing(paths.item_vectors) as folder:
        folder.mkdir()
        if isinstance(processor, FrozenEncoders):
            items = read_items(paths.dataset)[schemas.ITEM].to_list()
            source: ItemSource = feature_table(model, features or variant_features(paths))
        else:
            from pixrec_core.models.tower_inputs import TowerInputs

            inputs = TowerInputs.load(paths, model.backbone, processor, settings.item_tokens)
            items, source = inputs.items, inputs.collator()
        trained_on = getattr(model.config, "catalogue", "")  # checkpoints of older versions lack it
        if trained_on and trained_on != catalogue_digest(pl.Series(items)):
            raise ArtefactError(
                f"{paths.checkpoint} has vectors of other items than {paths.dataset.sequences}, which was built after "
                "its training; train again with `pixrec run`"
            )
        if isinstance(model, ItemsLayers):
            encoder = ItemsEncoder.encode(model, items, source, engine)
            arrays = {"vectors": encoder.candidate_vectors, HISTORY_VECTORS: encoder.history_vectors}
        else:
            from pixrec_core.models.photo_store import feature_store
            from pixrec_core.retrieval.token_encoder import Encoder

            photo_folder = _features_folder(settings, paths, folder)
            photos = feature_store(photo_folder, model, inputs.pixels, engine) if inputs.pixels else None
            arrays = {"vectors": Encoder(model, inputs, photos).item_vectors(engine)}
        header = {CHECKPOINT: checkpoint.weights_sha256(paths.checkpoint)}
        save_file(arrays, folder / VECTORS, metadata=header)
        pl.DataFrame({schemas.ITEM: items}).write_parquet(folder / ITEMS)
    count, dimension = arrays["vectors"].shape
    return {"items": count, "dimension": dimension}


def load_encoder(paths: VariantPaths) -> "tuple[Encoder | ItemsEncoder, Processor | FrozenEncoders]":
    """The encoder of a variant's checkpoint, with what `encode_items` wrote; and the processor of its inputs.

    Raises:
        MissingArtefactError: there is no checkpoint, or no item vectors.
        ArtefactError: a file is damaged.
    """
    model, processor = checkpoint.load_for_inference(paths.checkpoint)
    if isinstance(model, ItemsLayers):
        items, vectors = read_item_vectors(paths.item_vectors)
        history_vectors = _read_vectors(paths.item_vectors, HISTORY_VECTORS)
        return ItemsEncoder(model, items, vectors, history_vectors), processor
    from pixrec_core.models.photo_store import feature_store
    from pixrec_core.models.tower_inputs import TowerInputs
    from pixrec_core.retrieval.token_encoder import Encoder

    settings, training = checkpoint.load_settings(paths.checkpoint)
    inputs = TowerInputs.load(paths, model.backbone, processor, settings.item_tokens)
    features = _features_folder(settings, paths, paths.item_vectors)
    photos = feature_store(features, model, inputs.pixels, LOCAL) if inputs.pixels else None
    return Encoder(model, inputs, photos, training.max_history_len), processor


def read_item_vectors(folder: Path) -> tuple[list[str], Vectors]:
    """Item ids (N) and their vectors (N, D), in the same order. The vectors are memory-mapped.

    Raises:
        MissingArtefactError: there are no item vectors.
        ArtefactError: a file is damaged, or the vectors are not one per item.
    """
    items, vectors = read_item_ids(folder), _read_vectors(folder, "vectors")
    if len(vectors) != len(items):
        raise ArtefactError(
            f"{folder / VECTORS} has {len(vectors):,} vectors but {folder / ITEMS} has {len(items):,} items; "
            "run the stage `item_vectors` with --force"
        )
    return items, vectors


def _read_vectors(folder: Path, name: str) -> Vectors:
    """One array of the vectors' file, memory-mapped."""
    path = files.require(folder / VECTORS)
    with _reporting_damage(path), safe_open(path, "pt") as file:  # only the PyTorch loader maps instead of reading
        vectors: Vectors = file.get_tensor(name).numpy()
    if vectors.ndim != 2 or vectors.dtype != np.float32:
        raise ArtefactError(
            f"{path} is damaged: {name} are {vectors.dtype} {vectors.shape}; run the stage `item_vectors` with --force"
        )
    return vectors


def read_checkpoint_sha256(folder: Path) -> str:
    """Checksum of the checkpoint that encoded the item vectors.

    Raises:
        ArtefactError: the file of vectors is damaged.
    """
    path = files.require(folder / VECTORS)
    with _reporting_damage(path), safe_open(path, "numpy") as file:
        return str(file.metadata()[CHECKPOINT])


def read_item_ids(folder: Path) -> list[str]:
    """Item ids in the order of their vectors."""
    path = files.require(folder / ITEMS)
    with _reporting_damage(path):
        return pl.read_parquet(path, glob=False)[schemas.ITEM].to_list()


@contextmanager
def _reporting_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, KeyError, TypeError, pl.exceptions.PolarsError) as error:
        raise ArtefactError(f"{path} is damaged ({error}); run the stage `item_vectors` with --force") from error


def photo_features_paths(checked: VariantPaths, *others: VariantPaths) -> list[Path] | None:
    """The files of photo features that `load_encoder` reads, in folders with the same artefacts; `checked` is loaded.

    None for a variant or dataset without photos, and with `user_encoder = "items"`.
    """
    model, processor = checkpoint.load_for_inference(checked.checkpoint)
    if isinstance(model, ItemsLayers):
        return None
    from pixrec_core.models.photo_store import feature_file
    from pixrec_core.models.tower_inputs import TowerInputs

    settings, _ = checkpoint.load_settings(checked.checkpoint)
    pixels = TowerInputs.load(checked, model.backbone, processor, settings.item_tokens).pixels
    if pixels is None:
        return None
    name = feature_file(model, pixels)
    return [_features_folder(settings, paths, paths.item_vectors) / name for paths in (checked, *others)]


def _features_folder(settings: ModelSettings, paths: VariantPaths, vectors_folder: Path) -> Path:
    """Features of a frozen vision tower are shared by all variants; those of a trained one belong to its vectors."""
    return paths.dataset.cache if settings.vision == "frozen" else vectors_folder
