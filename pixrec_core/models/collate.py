"""Batches of padded tensors from item numbers: each distinct item once, all prefixes of a window at once.

Shapes: B rows, L tokens, I distinct items, J distinct photos, K features per photo, M (history, target) pairs, T items
of all histories one after the other, C keys (items that every pair of a training batch is compared with).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixrec_core import prompts
from pixrec_core.models.backbones import Processor
from pixrec_core.models.item_inputs import NO_PHOTO, Ids, ItemInputs
from pixrec_core.models.negatives import Negatives
from pixrec_core.models.process_group import SINGLE_PROCESS, RankInfo
from pixrec_core.models.windows import TrainingWindow

Batch = dict[str, Any]

#: Loads photo rows as `{"pixel_values": ...}` with the vision tower's side inputs, or as `{"features": (J, K, F)}`.
PhotoLoader = Callable[[Ids], dict[str, Tensor]]


@dataclass
class Collator:
    """Builds batches for both towers.

    Attributes:
        inputs: token ids and photo rows of all items.
        processor: processor of the backbone.
        load_photos: loads the photos of a batch.
        negatives: sampled negatives of a training batch; None for in-batch negatives only.
        rank_info: selects the part of a training batch that this process encodes.
    """

    inputs: ItemInputs
    processor: Processor
    load_photos: PhotoLoader
    negatives: Negatives | None = None
    rank_info: RankInfo = SINGLE_PROCESS

    def __post_init__(self) -> None:
        start, text_ids = self.processor.start_ids, self.processor.text_ids
        self._start_ids = np.array(start, dtype=np.int64)
        self._first_ids = np.array([*start, *text_ids(prompts.FIRST)], dtype=np.int64)
        self._next_ids = np.array(text_ids(prompts.NEXT), dtype=np.int64)

    def set_epoch(self, epoch: int) -> None:
        """Restart the sampling of negatives; call it before each epoch."""
        if self.negatives:
            self.negatives.set_epoch(epoch)

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each item."""
        return [len(block.ids) for block in self.inputs]

    def item_batch(self, numbers: Sequence[int] | Ids) -> Batch:
        """Inputs of `DualTower.item_vectors`: one row per item.

        Returns:
            `input_ids`, `image_feature_index` (I, L); `starts`, `ends` (I,) token range of each item; `numbers` (I,)
            item numbers; `photos`.
        """
        photo_index = self._photo_index(np.asarray(numbers, dtype=np.int64))
        return {**self._item_batch(numbers, photo_index), "photos": self._load(photo_index)}

    def _item_batch(self, numbers: Sequence[int] | Ids, photo_index: dict[int, int]) -> Batch:
        """`item_batch` without photos; `photo_index` gives the index of each item's photo in the batch."""
        rows = [self._prompt(self._start_ids, [number], photo_index) for number in numbers]
        spans = np.concatenate([spans for _, _, spans in rows])
        return {
            "input_ids": _pad([ids for ids, _, _ in rows], 0),
            "image_feature_index": _pad([index for _, index, _ in rows], -1),
            "starts": torch.from_numpy(spans[:, 0]),
            "ends": torch.from_numpy(spans[:, 1]),
            "numbers": torch.from_numpy(np.asarray(numbers, dtype=np.int64)),
        }

    def history_batch(self, histories: Sequence[Sequence[int]]) -> Batch:
        """Inputs of `DualTower.user_vectors`: one row per history, its items oldest first.

        Returns:
            `input_ids`, `image_feature_index` (B, L); `lengths` (B,) tokens of each row; `numbers` (T,) item numbers;
            `item_ranges` (B, 2) the range of `numbers` that each history holds; `item_spans`, one (n, 2) array per
            history with the token ranges of its items; `photos`.
        """
        distinct = np.unique(np.concatenate([np.asarray(history, dtype=np.int64) for history in histories]))
        photo_index = self._photo_index(distinct)
        return {**self._history_batch(histories, photo_index), "photos": self._load(photo_index)}

    def _history_batch(self, histories: Sequence[Sequence[int]], photo_index: dict[int, int]) -> Batch:
        """`history_batch` without photos; `photo_index` gives the index of each item's photo in the batch."""
        rows = [self._prompt(self._first_ids, history, photo_index) for history in histories]
        ends = np.cumsum([len(history) for history in histories])
        return {
            "input_ids": _pad([ids for ids, _, _ in rows], 0),
            "image_feature_index": _pad([index for _, index, _ in rows], -1),
            "lengths": torch.tensor([spans[-1, 1] for _, _, spans in rows]),
            "numbers": torch.from_numpy(np.concatenate([np.asarray(h, dtype=np.int64) for h in histories])),
            "item_ranges": torch.from_numpy(np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1)),
            "item_spans": [spans for _, _, spans in rows],
        }

    def generation_prompts(self, histories: Sequence[Sequence[int]]) -> Batch:
        """Histories, each followed by the words that precede the next item, to generate its text.

        Returns:
            `input_ids`, `image_feature_index` (B, L); `lengths` (B,) tokens of each row; `photos`.
        """
        batch = self.history_batch(histories)
        lengths, lead = batch["lengths"], torch.from_numpy(self._next_ids)
        no_image = torch.full_like(lead, -1)

        def append(rows: Tensor, tail: Tensor, padding: int) -> Tensor:
            return _pad([torch.cat([row[:n], tail]) for row, n in zip(rows, lengths, strict=True)], padding)

        return {
            "input_ids": append(batch["input_ids"], lead, 0),
            "image_feature_index": append(batch["image_feature_index"], no_image, -1),
            "lengths": lengths + len(lead),
            "photos": batch["photos"],
        }

    def __call__(self, windows: Sequence[TrainingWindow]) -> Batch:
        """Inputs of `DualTower.forward`: histories, items, and every pair of a prefix and its next item.

        With several ranks, the batch holds this rank's histories with their pairs, and this rank's items. The items
        of all ranks, in rank order, are the C keys that every pair is compared with.

        Returns:
            `history_input_ids`, `history_image_feature_index` (B, L), `history_numbers` (T,);
            `item_input_ids`, `item_image_feature_index` (I, L'), `item_starts`, `item_ends`, `item_numbers` (I,);
            `photos`; `key_numbers`, `key_offsets` (C,) item number and logit offset of each key;
            `keys_per_rank`, number of keys that each rank encodes; for the M pairs: `pair_rows` (M,) row of the
            history, `pair_spans` (M, 3) token indices (end of history, start and end of target), `pair_item_ranges`
            (M, 2) range of `history_numbers`, `pair_targets` (M,) index of the target among the keys;
            `excluded` (E, 2) pairs and numbers of items that are no negatives of them; `label_rows`,
            `label_positions` of the text tokens to generate; `pair_count`, `label_count` of all ranks together.
        """
        numbers, offsets, keys_per_rank = self._keys(windows)
        local_windows = self.rank_info.local_windows(windows)
        local_items = np.split(numbers, np.cumsum(keys_per_rank)[:-1])[self.rank_info.rank]
        if not len(local_items):
            local_items = numbers[:1]  # an empty batch cannot be encoded; its row is not gathered
        history_items = (number for window in local_windows for number in window.items)
        photo_index = self._photo_index(np.array(list(dict.fromkeys([*local_items, *history_items]))))
        if not photo_index:  # all ranks must run the vision tower, since sharded weights are gathered inside it
            photo_index = dict(list(self._photo_index(numbers).items())[:1])
        items = self._item_batch(local_items, photo_index)
        histories = self._history_batch([window.items for window in local_windows], photo_index)
        pairs = _pairs(local_windows, histories, {int(number): key for key, number in enumerate(numbers)})
        text_lengths = np.array([self.inputs[number].text_length for number in numbers])
        return {
            "history_input_ids": histories["input_ids"],
            "history_image_feature_index": histories["image_feature_index"],
            "history_numbers": histories["numbers"],
            **{f"item_{name}": value for name, value in items.items()},
            "key_numbers": torch.from_numpy(numbers),
            "key_offsets": torch.from_numpy(offsets).float(),
            "keys_per_rank": keys_per_rank,
            "photos": self._load(photo_index),
            **pairs,
            **_labels(pairs, text_lengths),
            "pair_count": sum(len(window.items) - 1 for window in windows),
            "label_count": sum(self.inputs[n].text_length for window in windows for n in window.items[1:]),
        }

    def _keys(self, windows: Sequence[TrainingWindow]) -> tuple[Ids, NDArray[np.float64], list[int]]:
        """Numbers and logit offsets of all keys in rank order, and the number of keys per rank."""
        lengths = [len(window.items) for window in windows]
        batch_items, first = np.unique(np.concatenate([window.items for window in windows]), return_index=True)
        numbers, offsets = (
            self.negatives.sample(batch_items) if self.negatives else (batch_items, np.zeros(len(batch_items)))
        )
        window_rows = np.repeat(np.arange(len(windows)), lengths)[first]
        ranks = self.rank_info.assign_items(window_rows, len(numbers) - len(batch_items))
        order = np.argsort(ranks, kind="stable")
        keys_per_rank = np.bincount(ranks, minlength=self.rank_info.world_size).tolist()
        return numbers[order], offsets[order], keys_per_rank

    def _prompt(self, lead: Ids, numbers: Sequence[int] | Ids, photo_index: Mapping[int, int]) -> tuple[Ids, Ids, Ids]:
        """Token ids (L,), image feature index (L,) and item spans (n, 2) of `lead` and some items."""
        ids, image_feature_index, spans, length = [], [], [], 0
        for number in numbers:
            block = self.inputs[number]
            index = block.image_feature_index
            if number in photo_index:  # indexes the (J * K) features of the batch
                index = np.where(index >= 0, index + photo_index[number] * self.inputs.image_tokens, -1)
            ids += [lead, block.ids]
            image_feature_index += [np.full_like(lead, -1), index]
            spans.append((length + len(lead), length + len(lead) + len(block.ids)))
            length, lead = spans[-1][1], self._next_ids
        return np.concatenate(ids), np.concatenate(image_feature_index), np.array(spans)

    def _photo_index(self, distinct: Ids) -> dict[int, int]:
        """Maps the number of each item with a photo to the index of that photo in the batch."""
        with_photo = distinct[self.inputs.photo_rows[distinct] != NO_PHOTO]
        return {int(number): index for index, number in enumerate(with_photo)}

    def _load(self, photo_index: dict[int, int]) -> dict[str, Tensor]:
        return self.load_photos(self.inputs.photo_rows[list(photo_index)]) if photo_index else {}


def _pad(rows: Sequence[Ids | Tensor], value: int) -> Tensor:
    """Rows of different lengths as one right-padded tensor; a causal model never attends to right padding."""
    return torch.nn.utils.rnn.pad_sequence([torch.as_tensor(r) for r in rows], batch_first=True, padding_value=value)


def _pairs(windows: Sequence[TrainingWindow], histories: Batch, key_index: Mapping[int, int]) -> Batch:
    """All (prefix, next item) pairs of a batch.

    Items that the user takes later, in this window or after it, are correct answers too, so they are excluded from
    the negatives. Items of the history are negatives like any other. `key_index` is the index of each item among the
    keys.
    """
    rows: list[int] = []
    targets: list[int] = []
    spans, item_ranges, excluded = [], [], [np.empty((0, 2), dtype=np.int64)]
    for row, (window, span) in enumerate(zip(windows, histories["item_spans"], strict=True)):
        start, after = int(histories["item_ranges"][row, 0]), np.unique(np.asarray(window.later, np.int64))
        for n in range(1, len(window.items)):
            later = np.concatenate([window.items[n:], after])
            excluded.append(np.stack([np.full_like(later, len(rows)), later], axis=1))
            rows.append(row)
            spans.append((span[n - 1, 1], span[n, 0], span[n, 1]))
            item_ranges.append((start, start + n))
            targets.append(key_index[window.items[n]])
    return {
        "pair_rows": torch.tensor(rows, dtype=torch.long),
        "pair_spans": torch.from_numpy(np.array(spans, dtype=np.int64).reshape(-1, 3)),
        "pair_item_ranges": torch.tensor(item_ranges, dtype=torch.long).reshape(-1, 2),
        "pair_targets": torch.tensor(targets, dtype=torch.long),
        "excluded": torch.from_numpy(np.concatenate(excluded)),
    }


def _labels(pairs: Batch, text_lengths: Ids) -> Batch:
    """Row and position of every text token of every target; `text_lengths` (C,) counts text tokens of the keys."""
    starts = pairs["pair_spans"][:, 1].numpy()
    lengths = text_lengths[pairs["pair_targets"].numpy()]
    offsets = np.concatenate([np.arange(n) for n in lengths]) if len(lengths) else np.empty(0, dtype=np.int64)
    return {
        "label_rows": torch.from_numpy(np.repeat(pairs["pair_rows"].numpy(), lengths)),
        "label_positions": torch.from_numpy(np.repeat(starts, lengths) + offsets).long(),
    }
