"""Training batches of an `ItemsTower`: every item once, all prefixes of a window at once.

Shapes: B windows of at most L items, I items, K features of a modality, M (history, target) pairs, C keys.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pixrec_core.models.collate import Batch
from pixrec_core.models.item_inputs import Ids
from pixrec_core.models.negatives import Negatives
from pixrec_core.models.windows import TrainingWindow


@dataclass(frozen=True)
class ItemsCollator:
    """Builds training batches; `item_batch` returns the inputs of `ItemsTower.contents` for item numbers."""

    item_batch: Callable[[Ids], Batch]
    negatives: Negatives

    def set_epoch(self, epoch: int) -> None:
        """Restart the sampling of negatives; call it before each epoch."""
        self.negatives.set_epoch(epoch)

    def __call__(self, windows: Sequence[TrainingWindow]) -> Batch:
        """Return the inputs of `ItemsTower.forward`.

        Returns:
            `items`: inputs of the C keys, those of the windows first; `history_keys`: number of keys in windows;
            `key_numbers` (C,), `key_offsets` (C,) item number and logit offset of each key, None where all are 0;
            `window_items` (B, L) keys of the windows, right-padded with 0; `times` (B, L) milliseconds; `lengths`
            (B,); for the M pairs: `pairs` (M, 2) row and column of the target, `pair_targets` (M,) its key,
            `excluded` (E, 2) pairs and numbers of items that are no negatives of them.
        """
        lengths = np.array([len(window.items) for window in windows])
        items = np.concatenate([np.asarray(window.items, np.int64) for window in windows])
        batch_items, keys = np.unique(items, return_inverse=True)
        numbers, offsets = self.negatives.sample(batch_items)
        real = np.arange(lengths.max()) < lengths[:, None]
        window_items, times = np.zeros(real.shape, np.int64), np.zeros(real.shape, np.int64)
        window_items[real] = keys
        if windows[0].times:
            times[real] = np.concatenate([np.asarray(window.times, np.int64) for window in windows])
        is_target = real & (np.arange(real.shape[1]) > 0)
        pairs = np.argwhere(is_target)
        return {
            "items": self.item_batch(numbers),
            "history_keys": len(batch_items),
            "key_numbers": torch.from_numpy(numbers),
            "key_offsets": torch.from_numpy(offsets).float() if offsets.any() else None,
            "window_items": torch.from_numpy(window_items),
            "times": torch.from_numpy(times),
            "lengths": torch.from_numpy(lengths),
            "pairs": torch.from_numpy(pairs),
            "pair_targets": torch.from_numpy(window_items[is_target]),
            "excluded": torch.from_numpy(_excluded(windows, pairs, numbers)),
        }


def _excluded(windows: Sequence[TrainingWindow], pairs: Ids, numbers: Ids) -> Ids:
    """Return (E, 2) the index of a pair and the number of an item that its user takes later, its target included.

    They are correct answers too, so they are no negatives. `pairs` (M, 2) are row and column of each target, `numbers`
    (C,) the items of the batch: of those after the window, only they count.
    """
    taken = [
        np.concatenate([window.items, np.intersect1d(np.asarray(window.later, np.int64), numbers)])
        for window in windows
    ]
    ends = np.cumsum([len(each) for each in taken])
    starts = ends - [len(each) for each in taken]
    first, counts = starts[pairs[:, 0]] + pairs[:, 1], ends[pairs[:, 0]] - starts[pairs[:, 0]] - pairs[:, 1]
    index = np.arange(len(pairs)).repeat(counts)
    entries = np.arange(len(index)) - (np.cumsum(counts) - counts)[index] + first[index]
    return np.stack([index, np.concatenate(taken)[entries]], axis=1)


@dataclass(frozen=True)
class FeatureTable:
    """Whitened features of all items of a catalogue.

    Attributes:
        values: (N, K) by modality; a row of zeros for an item without it.
    """

    values: dict[str, Tensor]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each item, for the size of a batch: all items have equal size."""
        return [1] * len(next(iter(self.values.values())))

    def item_batch(self, numbers: Ids) -> Batch:
        """Return the inputs of `ItemsTower.contents`, and the item numbers."""
        index = torch.as_tensor(numbers)
        return {"contents": {name: values[index] for name, values in self.values.items()}, "numbers": index}
