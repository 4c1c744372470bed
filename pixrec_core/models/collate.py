"""From item numbers to padded tensors: each distinct item of a batch once, every prefix of a window at once.

Shapes: B rows, L tokens, I distinct items, J photos among them, M (history, target) pairs, T items of all
histories laid end to end, C items whose vectors a training batch compares.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixrec_core import prompts
from pixrec_core.models.backbones import Processor
from pixrec_core.models.item_inputs import NO_PHOTO, Ids, ItemBlock, ItemInputs
from pixrec_core.models.negatives import Negatives
from pixrec_core.models.process_group import WHOLE, RankInfo
from pixrec_core.models.windows import TrainingWindow

Batch = dict[str, Any]

#: From rows of photos to `{"pixel_values": ...}` and side inputs, or to `{"features": (J, K, H)}`.
PhotoLoader = Callable[[Ids], dict[str, Tensor]]


@dataclass
class Collator:
    """Builds batches for both towers.

    Attributes:
        inputs: of all items.
        processor: of the backbone.
        load_photos: brings what the vision tower needs of some photos.
        negatives: what targets are told apart from; None leaves them the items of the batch.
        share: what this process reads of a training batch.
    """

    inputs: ItemInputs
    processor: Processor
    load_photos: PhotoLoader
    negatives: Negatives | None = None
    rank_info: RankInfo = WHOLE
    _next: Ids = field(init=False)

    def __post_init__(self) -> None:
        self._next = np.array(self.processor.text_ids(prompts.NEXT), dtype=np.int64)

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch."""
        if self.negatives:
            self.negatives.set_epoch(epoch)

    @cached_property
    def _first(self) -> Ids:
        return np.array([*self.processor.start_ids, *self.processor.text_ids(prompts.FIRST)], dtype=np.int64)

    def item_batch(self, numbers: Sequence[int] | Ids) -> Batch:
        """Each item read alone.

        Returns:
            `ids`, `image_feature_index` (I, L), `starts`, `ends`, `numbers` (I,) token range and number of each item, and photos.
        """
        places = self._places(np.asarray(numbers, dtype=np.int64))
        return {**self._items(numbers, places), "photos": self._load(places)}

    def _items(self, numbers: Sequence[int] | Ids, places: dict[int, int]) -> Batch:
        """`items` but for the photos, whose places among those of the batch are given."""
        start = np.array(self.processor.start_ids, dtype=np.int64)
        blocks = [self.inputs.blocks[n] for n in numbers]
        ids = [np.concatenate([start, b.ids]) for b in blocks]
        image_feature_index = [
            np.concatenate([np.full_like(start, -1), self._flat(b, places.get(n))])
            for n, b in zip(numbers, blocks, strict=True)
        ]
        ends = np.array([len(row) for row in ids])
        return {
            "ids": _pad(ids, 0),
            "image_feature_index": _pad(image_feature_index, -1),
            "starts": torch.full((len(ids),), len(start)),
            "ends": torch.from_numpy(ends),
            "numbers": torch.from_numpy(np.asarray(numbers, dtype=np.int64)),
        }

    def history_batch(self, windows: Sequence[Sequence[int]]) -> Batch:
        """Items of each user read in order.

        Returns:
            `ids`, `image_feature_index` (B, L); `ends` (B,) tokens of each; `numbers` (T,) and `places` (B, 2), which of
            them each history holds; `spans`, one (n, 2) array of token ranges of the items of each; and photos.
        """
        places = self._places(np.unique(np.concatenate([np.asarray(w, dtype=np.int64) for w in windows])))
        return {**self._histories(windows, places), "photos": self._load(places)}

    def _histories(self, windows: Sequence[Sequence[int]], places: dict[int, int]) -> Batch:
        """`histories` but for the photos, whose places among those of the batch are given."""
        rows = [self._history(window, places) for window in windows]
        past = np.cumsum([len(window) for window in windows])
        return {
            "ids": _pad([ids for ids, _, _ in rows], 0),
            "image_feature_index": _pad([image_feature_index for _, image_feature_index, _ in rows], -1),
            "ends": torch.tensor([spans[-1, 1] for _, _, spans in rows]),
            "numbers": torch.from_numpy(np.concatenate([np.asarray(w, dtype=np.int64) for w in windows])),
            "places": torch.from_numpy(np.stack([np.concatenate([[0], past[:-1]]), past], axis=1)),
            "item_spans": [spans for _, _, spans in rows],
        }

    def generation_prompts(self, windows: Sequence[Sequence[int]]) -> Batch:
        """Histories, and after each what announces the next item; its text would follow.

        Returns:
            `ids`, `image_feature_index` (B, L), `ends` (B,) tokens of each, and photos.
        """
        batch = self.history_batch(windows)
        ends, lead = batch["ends"], torch.from_numpy(self._next)
        ids = [torch.cat([row[:end], lead]) for row, end in zip(batch["ids"], ends, strict=True)]
        image_feature_index = [
            torch.cat([row[:end], torch.full_like(lead, -1)])
            for row, end in zip(batch["image_feature_index"], ends, strict=True)
        ]
        return {
            "ids": _pad(ids, 0),
            "image_feature_index": _pad(image_feature_index, -1),
            "ends": ends + len(lead),
            "photos": batch["photos"],
        }

    def __call__(self, windows: Sequence[TrainingWindow]) -> Batch:
        """A training batch: histories, the distinct items and others, and every pair of a prefix and its next item.

        Of the batch that `windows` are, this process's share is read: histories and their pairs, and items. The
        items of all shares, one share after the other, are the C keys that every pair is compared with.

        Returns:
            `history_ids`, `history_image_feature_index` (B, L), `history_numbers` (T,), `item_ids`, `item_image_feature_index` (I, L'),
            `item_starts`, `item_ends`, `item_numbers` (I,), `photos`; `key_numbers`, `key_offsets` (C,) and
            `key_counts`, how many keys each process reads; for the M pairs `pair_rows` (M,),
            `pair_spans` (M, 3) token positions (end of history, start and end of target), `pair_places`
            (M, 2) as in `histories`, `pair_targets` (M,) among the keys; `excluded` (E, 2) pairs
            and items that are no negatives of them; `label_rows`, `label_positions` of text to generate;
            `pair_count`, `label_count` of all shares.
        """
        numbers, offsets, counts = self._keys(windows)
        own = self.rank_info.windows(windows)
        read = np.split(numbers, np.cumsum(counts)[:-1])[self.rank_info.rank]
        if not len(read):
            read = numbers[:1]  # read for nothing, but nobody can read no item
        places = self._places(np.array(list(dict.fromkeys([*read, *(n for window in own for n in window.items)]))))
        if not places:  # the vision tower runs wherever it runs at all: processes may wait for each other within it
            places = dict(list(self._places(numbers).items())[:1])
        items, histories = self._items(read, places), self._histories([window.items for window in own], places)
        pairs = _pairs(own, histories, {int(number): place for place, number in enumerate(numbers)})
        text_lengths = np.array([self.inputs.blocks[n].text_length for n in numbers])
        return {
            "history_ids": histories["ids"],
            "history_image_feature_index": histories["image_feature_index"],
            "history_numbers": histories["numbers"],
            "item_ids": items["ids"],
            "item_image_feature_index": items["image_feature_index"],
            "item_starts": items["starts"],
            "item_ends": items["ends"],
            "item_numbers": items["numbers"],
            "key_numbers": torch.from_numpy(numbers),
            "key_offsets": torch.from_numpy(offsets).float(),
            "key_counts": counts,
            "photos": self._load(places),
            **pairs,
            **_labels(pairs, text_lengths),
            "pair_count": sum(len(window.items) - 1 for window in windows),
            "label_count": sum(self.inputs.blocks[n].text_length for window in windows for n in window.items[1:]),
        }

    def _keys(self, windows: Sequence[TrainingWindow]) -> tuple[Ids, NDArray[np.float64], list[int]]:
        """Numbers and offsets of all items of a training batch, in the order of who reads them, and how many each."""
        lengths = [len(window.items) for window in windows]
        own, firsts = np.unique(np.concatenate([window.items for window in windows]), return_index=True)
        numbers, offsets = self.negatives.sample(own) if self.negatives else (own, np.zeros(len(own)))
        rows = np.repeat(np.arange(len(windows)), lengths)[firsts]
        holders = self.rank_info.holders(rows, len(numbers) - len(own))
        order = np.argsort(holders, kind="stable")
        counts = np.bincount(holders, minlength=self.rank_info.world_size).tolist()
        return numbers[order], offsets[order], counts

    def _history(self, window: Sequence[int], places: dict[int, int]) -> tuple[Ids, Ids, Ids]:
        """Token ids, image_feature_index and item spans of one window."""
        ids, image_feature_index, spans, length = [], [], [], 0
        for n, number in enumerate(window):
            block = self.inputs.blocks[number]
            lead = self._next if n else self._first
            ids += [lead, block.ids]
            image_feature_index += [np.full_like(lead, -1), self._flat(block, places.get(number))]
            spans.append((length + len(lead), length + len(lead) + len(block.ids)))
            length = spans[-1][1]
        return np.concatenate(ids), np.concatenate(image_feature_index), np.array(spans)

    def _places(self, distinct: Ids) -> dict[int, int]:
        """Place of each of some distinct items among the photos of a batch, for those that have one."""
        with_photo = distinct[self.inputs.photo_rows[distinct] != NO_PHOTO]
        return {int(number): place for place, number in enumerate(with_photo)}

    def _load(self, places: dict[int, int]) -> dict[str, Tensor]:
        return self.load_photos(self.inputs.photo_rows[list(places)]) if places else {}

    def _flat(self, block: ItemBlock, place: int | None) -> Ids:
        """Slots as positions in the features of all loaded photos laid end to end."""
        if place is None:
            return block.image_feature_index
        flat: Ids = np.where(
            block.image_feature_index >= 0, block.image_feature_index + place * self.inputs.image_tokens, -1
        )
        return flat


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A batch's tensors on a device."""
    return {
        name: to_device(value, device) if isinstance(value, dict) else value.to(device) for name, value in batch.items()
    }


def _pad(rows: Sequence[Ids | Tensor], value: int) -> Tensor:
    """Rows of different length as one tensor, filled on the right: a causal model never reads what follows."""
    return torch.nn.utils.rnn.pad_sequence([torch.as_tensor(r) for r in rows], batch_first=True, padding_value=value)


def _pairs(windows: Sequence[TrainingWindow], histories: Batch, keys: Mapping[int, int]) -> Batch:
    """All (prefix, next item) pairs of a batch.

    Negatives of a pair are all items but those that the user takes later, in this window or in training
    after it: these are right answers too. Items that the user has had already are negatives like any other.

    Args:
        windows: of the batch.
        histories: from `histories`.
        keys: place of each item among those that are compared.
    """
    rows: list[int] = []
    targets: list[int] = []
    spans, places, excluded = [], [], [np.empty((0, 2), dtype=np.int64)]
    for row, (window, span) in enumerate(zip(windows, histories["item_spans"], strict=True)):
        start = int(histories["places"][row, 0])
        for n in range(1, len(window.items)):
            later = np.concatenate([window.items[n:], window.later]).astype(np.int64)
            excluded.append(np.stack([np.full_like(later, len(rows)), later], axis=1))
            rows.append(row)
            spans.append((span[n - 1, 1], span[n, 0], span[n, 1]))
            places.append((start, start + n))
            targets.append(keys[window.items[n]])
    return {
        "pair_rows": torch.tensor(rows, dtype=torch.long),
        "pair_spans": torch.from_numpy(np.array(spans, dtype=np.int64).reshape(-1, 3)),
        "pair_places": torch.tensor(places, dtype=torch.long).reshape(-1, 2),
        "pair_targets": torch.tensor(targets, dtype=torch.long),
        "excluded": torch.from_numpy(np.concatenate(excluded)),
    }


def _labels(pairs: Batch, text_lengths: Ids) -> Batch:
    """Rows and positions of the text tokens of every target."""
    starts = pairs["pair_spans"][:, 1].numpy()
    lengths = text_lengths[pairs["pair_targets"].numpy()]
    offsets = np.concatenate([np.arange(n) for n in lengths]) if len(lengths) else np.empty(0, dtype=np.int64)
    return {
        "label_rows": torch.from_numpy(np.repeat(pairs["pair_rows"].numpy(), lengths)),
        "label_positions": torch.from_numpy(np.repeat(starts, lengths) + offsets).long(),
    }
