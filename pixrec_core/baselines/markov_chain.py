"""A dictionary of what followed the last two items in training, else the last one, else popularity.

It understands nothing. Where it scores high, test targets stand word for word in training data or
people buy the same things in the same order; any claim about a model must be read beside it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from pixrec_core.baselines._contract import FittedModel, TrainData
from pixrec_core.baselines._item_lists import ItemLists, Scores


def fit(train_data: TrainData) -> FittedModel:
    """Count what followed each one and each two items.

    A score is 1 (after the last two), else 0 (after the last one), plus the share of the times
    that the item followed: whatever followed both comes first. All others score 0.
    """
    memories = [_Followers.of(train_data.train, order, train_data.n_items) for order in (1, 2)]

    def score(histories: ItemLists) -> Scores:
        scores = np.zeros((len(histories), train_data.n_items), np.float32)
        for level, memory in enumerate(memories):
            shares = memory.shares(histories).tocoo()
            scores[shares.row, shares.col] = level + shares.data
        return scores

    return FittedModel(score)


@dataclass(frozen=True)
class _Followers:
    """What followed each run of `order` items.

    Attributes:
        keys: (runs,), sorted; a run of items as one number.
        share: (runs + 1, n) of the times that each item followed; the last row, of unknown runs, is empty.
    """

    order: int
    n_items: int
    keys: NDArray[np.int64]
    share: sparse.csr_array

    @classmethod
    def of(cls, train: ItemLists, order: int, n_items: int) -> "_Followers":
        """Learn from training sequences."""
        ends, keys = _runs(train, order, n_items)
        followed = train.from_newest[ends] > 0
        known, rows = np.unique(keys[followed], return_inverse=True)
        columns = train.values[ends[followed] + 1]
        shape = (len(known) + 1, n_items)
        counts = sparse.csr_array((np.ones(len(rows), np.float32), (rows, columns)), shape=shape)
        totals = np.bincount(rows, minlength=shape[0])
        return cls(order, n_items, known, counts.multiply(1 / np.maximum(totals, 1)[:, None]).tocsr())

    def shares(self, histories: ItemLists) -> sparse.csr_array:
        """(B, n) for the run that ends each history."""
        ends, keys = _runs(histories, self.order, self.n_items)
        last = histories.from_newest[ends] == 0
        found = np.searchsorted(self.keys, keys[last])
        known = np.append(self.keys, -1)[found] == keys[last]
        rows = np.full(len(histories), len(self.keys))
        rows[histories.rows[ends[last]]] = np.where(known, found, len(self.keys))
        return self.share[rows]


def _runs(lists: ItemLists, order: int, n_items: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every run of `order` items within one list: where its last one stands in `values`, and its key."""
    ends = np.flatnonzero(np.arange(len(lists.values)) - lists.offsets[lists.rows] >= order - 1)
    keys = sum((lists.values[ends - back] * n_items**back for back in range(order)), np.zeros(len(ends), np.int64))
    return ends, keys
