"""Encode items and histories with an `ItemsTower`.

The vectors of all items in both roles are computed once; a history is then encoded from the vectors of its items.

Shapes: N items, D embedding size, B histories of at most L items.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
import torch
from accelerate.utils import send_to_device

from pixrec_core.engine import LOCAL, Engine
from pixrec_core.models.collate import Batch, Collator
from pixrec_core.models.dual_tower import DevicePickle
from pixrec_core.models.items_collate import FeatureTable
from pixrec_core.models.items_tower import ItemsTower
from pixrec_core.models.length_batches import Vectors, encode_all, to_numpy
from pixrec_core.ranking_table import id_lists

VALUES_PER_BATCH = 4_000_000  # of padded item vectors, 16 MB

#: Inputs of all items of a catalogue: frozen features, or tokens and photos.
ItemSource = FeatureTable | Collator


@dataclass(frozen=True)
class BothRoles(DevicePickle):
    """Encodes batches of items in both roles; can be sent to another process."""

    model: ItemsTower
    source: ItemSource

    @torch.inference_mode()
    def __call__(self, numbers: Sequence[int]) -> Vectors:
        """Return (B, 2, D): vectors of some items as candidates and as parts of a history."""
        batch = send_to_device(self.source.item_batch(np.asarray(numbers, np.int64)), self.model.device)
        contents, index = self.model.contents(batch), batch["numbers"]
        roles = [self.model.item_vectors(contents, index), self.model.history_vectors(contents, index)]
        return to_numpy(torch.stack(roles, dim=1))


@dataclass(frozen=True)
class ItemsEncoder:
    """An `ItemsTower` with the vectors of all items.

    Attributes:
        model: the tower, on any device.
        items: ids.
        candidate_vectors: (N, D) of the items as candidates.
        history_vectors: (N, D) of the items as parts of a history.
        max_history_len: the tower reads this many items of a history, the newest ones.
    """

    model: ItemsTower
    items: list[str]
    candidate_vectors: Vectors
    history_vectors: Vectors
    max_history_len: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_history_len", self.model.config.max_history_len)

    @classmethod
    def encode(cls, model: ItemsTower, items: list[str], source: ItemSource, engine: Engine = LOCAL) -> "ItemsEncoder":
        """Encode all items in both roles."""
        numbers = range(len(items))
        both = encode_all(BothRoles(model, source), numbers, source.lengths, model.device, "items encoded", engine)
        return cls(model, items, np.ascontiguousarray(both[:, 0]), np.ascontiguousarray(both[:, 1]))

    def numbers(self, sequences: pl.Series) -> pl.Series:
        """Return lists of item numbers from lists of item ids."""
        return id_lists(sequences, pl.Series(self.items))

    def crop(self, histories: Sequence[Sequence[int]]) -> list[Sequence[int]]:
        """Return the newest `max_history_len` items of each history."""
        return [history[-self.max_history_len :] for history in histories]

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
        histories = self.crop(histories)
        lengths = np.array([len(history) for history in histories])
        vectors = np.empty((len(histories), self.history_vectors.shape[1]), np.float32)
        order = np.argsort(lengths, kind="stable")
        size = max(1, VALUES_PER_BATCH // (max(lengths, default=1) * vectors.shape[1]))
        for rows in (order[start : start + size] for start in range(0, len(order), size)):
            given = None if times is None else self.crop([times[row] for row in rows])
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
        batch = send_to_device(item, self.model.device)
        no_id_embedding = torch.zeros(1, 1, device=self.model.device)
        return to_numpy(self.model.item_vectors(self.model.contents(batch), batch["numbers"], no_id_embedding))
