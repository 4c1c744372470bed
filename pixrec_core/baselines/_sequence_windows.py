"""Sequences as networks read them: rows of the items that training knows, cut to windows, padded to batches."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixrec_core.baselines._item_lists import ItemLists

WINDOW = 100  # items read, the newest ones; longer training sequences are cut into several
BATCH = 64  # windows in a step
POOL = 20 * BATCH  # windows that are grouped by length, to pad less


@dataclass(frozen=True)
class Vocabulary:
    """The items that training knows; the others cannot be learnt.

    Attributes:
        known: (k,) indices of the known items; the row of `known[i]` is i + 1, and row 0 is padding.
        row: (n,) of every item of the catalogue; 0 where it is not known.
    """

    known: NDArray[np.int64]
    row: NDArray[np.int64]

    @classmethod
    def of(cls, train: ItemLists, n_items: int) -> "Vocabulary":
        """The items that occur in training sequences."""
        known = np.unique(train.values)
        row = np.zeros(n_items, np.int64)
        row[known] = np.arange(1, len(known) + 1)
        return cls(known, row)

    def rows(self, lists: ItemLists) -> ItemLists:
        """The same lists in rows, without items that are not known."""
        rows = self.row[lists.values]
        return replace(lists, values=rows).where(rows > 0)


@dataclass(frozen=True)
class Windows:
    """Stretches of rows: window w is `values[starts[w]:ends[w]]`."""

    values: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    @classmethod
    def to_learn(cls, rows: ItemLists) -> "Windows":
        """Up to `WINDOW` items and a next one, from the newest back: all but a list's first are targets, once each."""
        bounds = [
            (max(start, end - WINDOW - 1), end)
            for start, stop in pairwise(rows.offsets.tolist())
            for end in range(stop, start + 1, -WINDOW)
        ]
        return cls(rows.values, *np.array(bounds, np.int64).reshape(-1, 2).T)

    @classmethod
    def newest(cls, rows: ItemLists) -> "Windows":
        """The last `WINDOW` items of each list."""
        return cls(rows.values, np.maximum(rows.offsets[:-1], rows.offsets[1:] - WINDOW), rows.offsets[1:])

    @property
    def lengths(self) -> NDArray[np.int64]:
        return self.ends - self.starts

    def padded(self, chosen: NDArray[np.int64]) -> Tensor:
        """(B, L) rows of the chosen windows, 0 from where each ends."""
        places = np.arange(self.lengths[chosen].max())
        real = places < self.lengths[chosen, None]
        rows = np.zeros(real.shape, np.int64)
        rows[real] = self.values[(self.starts[chosen, None] + places)[real]]
        return torch.from_numpy(rows)

    def shuffled(self, random: np.random.Generator) -> Iterator[Tensor]:
        """All windows once, in batches of like lengths."""
        order = random.permutation(len(self.starts))
        pools = [order[start : start + POOL] for start in range(0, len(order), POOL)]
        sorted_pools = [pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools]
        batches = [pool[start : start + BATCH] for pool in sorted_pools for start in range(0, len(pool), BATCH)]
        for place in random.permutation(len(batches)):
            yield self.padded(batches[place])
