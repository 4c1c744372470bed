"""A Markov chain of order two that backs off to order one, then to the popularity order.

It only memorises which item followed. If it scores high, test targets repeat training sequences, or users buy the same
items in the same order.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from pixrec_core.recommenders.base import ItemLists, Model, Scores, TrainData

Int64 = NDArray[np.int64]
ORDERS = (1, 2)


@dataclass(frozen=True, eq=False, kw_only=True)
class MarkovChain(Model):
    """Scores an item by how often it followed the last two items of the history, else the last one.

    The score is the share of their occurrences that the item followed, plus 1 after the last two items: these come
    first. All other items score 0.

    Attributes:
        keys_1: (runs,) sorted keys of all runs of one item; see `_runs`.
        followers_1: (runs + 1, n) share of each follower of a run; the last row, of unknown runs, is empty.
        keys_2: the same for runs of two items.
        followers_2: the same for runs of two items.
    """

    keys_1: Int64
    followers_1: sparse.csr_array
    keys_2: Int64
    followers_2: sparse.csr_array

    def scores(self, histories: ItemLists) -> Scores:
        scores = np.zeros((len(histories), self.n_items), np.float32)
        tables = ((self.keys_1, self.followers_1), (self.keys_2, self.followers_2))
        for level, (order, (keys, followers)) in enumerate(zip(ORDERS, tables, strict=True)):
            shares = followers[_last_run(histories, order, self.n_items, keys)].tocoo()
            scores[shares.row, shares.col] = level + shares.data
        return scores


load = MarkovChain.load


def fit(train: TrainData) -> Model:
    """Count the items that followed each one and each two items."""
    (keys_1, followers_1), (keys_2, followers_2) = (_count_followers(train, order) for order in ORDERS)
    return MarkovChain(
        popularity_ranks=train.popularity_ranks,
        keys_1=keys_1,
        followers_1=followers_1,
        keys_2=keys_2,
        followers_2=followers_2,
    )


def _count_followers(train: TrainData, order: int) -> tuple[Int64, sparse.csr_array]:
    """Return the keys and followers of `MarkovChain` for one order."""
    ends, keys = _runs(train.train, order, train.n_items)
    followed = train.train.from_newest[ends] > 0
    known, rows = np.unique(keys[followed], return_inverse=True)
    columns = train.train.values[ends[followed] + 1]
    shape = (len(known) + 1, train.n_items)
    counts = sparse.csr_array((np.ones(len(rows), np.float32), (rows, columns)), shape=shape)
    totals = np.bincount(rows, minlength=shape[0])
    return known, counts.multiply(1 / np.maximum(totals, 1)[:, None]).tocsr()


def _last_run(histories: ItemLists, order: int, n_items: int, known: Int64) -> Int64:
    """Return the row (B,) in `known` of the run that ends each history; len(known) for an unknown or short one."""
    ends, keys = _runs(histories, order, n_items)
    last = histories.from_newest[ends] == 0
    found = np.searchsorted(known, keys[last])
    rows = np.full(len(histories), len(known))
    rows[histories.rows[ends[last]]] = np.where(np.append(known, -1)[found] == keys[last], found, len(known))
    return rows


def _runs(lists: ItemLists, order: int, n_items: int) -> tuple[Int64, Int64]:
    """Return all runs of `order` items within one list: the index of the last item in `values`, and a key of the run.

    A key is the run as a number in base `n_items`.
    """
    ends = np.flatnonzero(np.arange(len(lists.values)) - lists.offsets[lists.rows] >= order - 1)
    keys = sum((lists.values[ends - back] * n_items**back for back in range(order)), np.zeros(len(ends), np.int64))
    return ends, keys
