"""The encoder of `user_encoder = "tokens"`, which reads the tokens and photos of whole histories.

Shapes: N items, D embedding size, B of U histories.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl
import torch
from accelerate.utils import send_to_device

from pixrec_core.engine import LOCAL, Engine
from pixrec_core.models.collate import Batch
from pixrec_core.models.dual_tower import DualTower
from pixrec_core.models.length_batches import DevicePickle, Vectors, encode_all, to_numpy
from pixrec_core.models.photo_store import PhotoStore
from pixrec_core.models.tower_inputs import TowerInputs
from pixrec_core.retrieval.encode import newest


@dataclass(frozen=True)
class Encoder(DevicePickle):
    """A dual tower that reads whole histories, with its inputs: encodes items to v_T and histories to v_U.

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

    @property
    def reads_photos(self) -> bool:
        """Whether the towers read photos: not in text_only, and not of a dataset without photos."""
        return self.photos is not None

    def item_vectors(self, engine: Engine = LOCAL) -> Vectors:
        """v_T of every item, (N, D)."""
        lengths, device = self.inputs.collator().lengths, self.model.device
        numbers = range(len(lengths))
        return encode_all(self.encode_item_batch, numbers, lengths, device, "items encoded", engine)

    def numbers(self, sequences: pl.Series) -> pl.Series:
        """Lists of item numbers from lists of item ids."""
        return self.inputs.numbers(sequences)

    def user_vectors(
        self,
        histories: Sequence[Sequence[int]],
        engine: Engine = LOCAL,
        times: Sequence[Sequence[int]] | None = None,
    ) -> Vectors:
        """v_U of every history, (U, D); prompts do not tell the times."""
        del times
        histories, blocks = newest(histories, self.max_history_len), self.inputs.inputs
        lengths = [sum(len(blocks[item].ids) for item in history) for history in histories]
        device = self.model.device
        return encode_all(self.encode_history_batch, histories, lengths, device, "histories encoded", engine)

    @torch.inference_mode()
    def encode_item_batch(self, items: Sequence[int]) -> Vectors:
        """v_T of some items, (B, D)."""
        batch = send_to_device(self.inputs.collator(self.photos).item_batch(items), self.model.device)
        return to_numpy(self.model.item_vectors(batch, self.model.photo_features(batch["photos"])))

    @torch.inference_mode()
    def encode_history_batch(self, histories: Sequence[Sequence[int]]) -> Vectors:
        """v_U of some histories, (B, D)."""
        batch = send_to_device(self.inputs.collator(self.photos).history_batch(histories), self.model.device)
        return to_numpy(self.model.user_vectors(batch, self.model.photo_features(batch["photos"])))

    @torch.inference_mode()
    def encode_new_item(self, item: Batch) -> Vectors:
        """v_T of the only item of a batch, (1, D). An item outside the catalogue has no item-id embedding."""
        batch = send_to_device(item, self.model.device)
        no_id_embedding = torch.zeros(1, 1, device=self.model.device)
        return to_numpy(self.model.item_vectors(batch, self.model.photo_features(batch["photos"]), no_id_embedding))
