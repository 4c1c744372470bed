"""A method of your own: the items that users of the newest item also have.

`pip install ./examples/custom_method`, then `pixrec run shop`: it appears in every table, feeds the blend, and serves
if it is the best. The metric at the end appears in metrics.json and metrics.csv.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from pixrec_core.evaluation.metrics import PerUser
from pixrec_core.recommenders.base import ItemLists, Model, Scores, TrainData


@dataclass(frozen=True, eq=False, kw_only=True)
class AlsoBought(Model):
    """Number of training users (n, n) who have both items."""

    pair_counts: sparse.csr_array

    def scores(self, histories: ItemLists) -> Scores:
        """Return (B, n): of the newest item of each history, the number of users who have it and another item."""
        last = histories.filter(histories.from_newest == 0).incidence(self.n_items)  # (B, n)
        return (last @ self.pair_counts).toarray()


load = AlsoBought.load


def fit(train: TrainData) -> Model:
    """Count the users of each two items."""
    incidence = train.train.incidence(train.n_items)  # (users, n)
    return AlsoBought(popularity_ranks=train.popularity_ranks, pair_counts=sparse.csr_array(incidence.T @ incidence))


def rank_biased_precision(ranks: PerUser, p: float = 0.8) -> PerUser:
    """Return (users,) (1 - p) p^(rank - 1), and 0 where the target is not in the list."""
    return (1 - p) * np.power(p, ranks - 1)
