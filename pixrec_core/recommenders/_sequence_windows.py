"""Input of sequence networks: rows of known items, cut into windows and padded to batches."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixrec_core.recommenders.base import ItemLists

WINDOW = 100  # items; a network reads the newest ones, and a longer training sequence is cut into several windows
STEPS_WANTED = 256  # per epoch, with a number of targets per step within `TARGETS`
TARGETS = (128, 1024)
POOL = 1280  # windows that are sorted by length together, to reduce padding


def embedding_rows(lists: ItemLists, known: NDArray[np.int64]) -> ItemLists:
    """Return lists of items as embedding rows, without unknown items: `known` (m,) is sorted, `known[i]` has row i + 1.

    Row 0 is padding.
    """
    rows = np.searchsorted(known, lists.values)
    is_known = np.append(known, -1)[rows] == lists.values
    return replace(lists, values=rows + 1).filter(is_known)


@dataclass(frozen=True)
class Windows:
    """Slices of embedding rows: window w is `values[starts[w]:ends[w]]`.

    Attributes:
        values: rows of all lists.
        starts: (windows,).
        ends: (windows,).
        instants: (values,) equal for adjacent values of one user and time, and not decreasing.
    """

    values: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    instants: NDArray[np.int64]

    @classmethod
    def to_train(cls, rows: ItemLists, times: NDArray[np.int64]) -> "Windows":
        """Cut lists, from the newest item back, so that each item but the first of a list is a target once.

        A window has up to `WINDOW` items and one more target. `times` (values,) do not decrease within a list.
        """
        is_new = (np.diff(times, prepend=-1) != 0) | (np.diff(rows.rows, prepend=-1) != 0)
        bounds = [
            (max(start, end - WINDOW - 1), end)
            for start, stop in pairwise(rows.offsets.tolist())
            for end in range(stop, start + 1, -WINDOW)
        ]
        starts, ends = np.array(bounds, np.int64).reshape(-1, 2).T
        return cls(rows.values, starts, ends, np.cumsum(is_new))

    @classmethod
    def newest(cls, rows: ItemLists) -> "Windows":
        """Return the last `WINDOW` items of each list."""
        starts = np.maximum(rows.offsets[:-1], rows.offsets[1:] - WINDOW)
        return cls(rows.values, starts, rows.offsets[1:], np.arange(len(rows.values)))

    @property
    def lengths(self) -> NDArray[np.int64]:
        return self.ends - self.starts

    def padded(self, selected: NDArray[np.int64]) -> Tensor:
        """Return (B, L) rows of the selected windows, with 0 after the end of each."""
        columns = np.arange(self.lengths[selected].max())
        real = columns < self.lengths[selected, None]
        rows = np.zeros(real.shape, np.int64)
        rows[real] = self.values[(self.starts[selected, None] + columns)[real]]
        return torch.from_numpy(rows)

    def shuffled(self, random: np.random.Generator) -> Iterator[Tensor]:
        """Yield all windows once, in batches of similar lengths and numbers of targets.

        So each target has a similar weight in the training. Items of one instant get a random order.
        """
        values = self.values[np.lexsort((random.random(len(self.values)), self.instants))]
        windows = replace(self, values=values)
        order = random.permutation(len(self.starts))
        targets, targets_per_step, batches = self.lengths - 1, self.targets_per_step, []
        for start in range(0, len(order), POOL):
            pool = order[start : start + POOL]
            pool = pool[np.argsort(targets[pool], kind="stable")]
            batch = (np.cumsum(targets[pool]) - 1) // targets_per_step
            batches += np.split(pool, np.flatnonzero(np.diff(batch)) + 1)
        for index in random.permutation(len(batches)):
            yield windows.padded(batches[index])

    @property
    def targets_per_step(self) -> int:
        """About the number of targets in a batch; a window is not divided."""
        return int(np.clip((self.lengths - 1).sum() // STEPS_WANTED, *TARGETS))
