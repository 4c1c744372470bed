"""EASE: a linear model from the items of a history to all items, in closed form.

B = I - P / diag(P) with P = (X'X + penalty I)^-1 and X the training users' items; the diagonal of B is 0 (Steck 2019,
"Embarrassingly Shallow Autoencoders for Sparse Data", equation 8). EASE ignores order, so validation targets decide
the recency weights as well as the penalty.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse

from pixrec_core.recommenders._recency_knn import RecencyWeightedKnn, choose_knn
from pixrec_core.recommenders.base import Model, Scores, TrainData

MOST_ITEMS = 8_000  # the most popular ones, for 2 GB of memory; time grows with the third power. Others score 0
SINGLE_PRECISION = 10_000  # condition number up to which single precision, twice as fast, gives three digits or more
PENALTIES = (10.0, 50.0, 250.0, 1000.0, 2500.0, 10_000.0)  # users


@dataclass(frozen=True, eq=False, kw_only=True)
class Ease(RecencyWeightedKnn):
    """The matrix B as `weights` (m, m), for the items of `items` (m,)."""

    items: NDArray[np.int64]
    weights: NDArray[np.float32]

    def similarity(self, weights: sparse.csr_array) -> Scores:
        scores = np.zeros(weights.shape, np.float32)
        scores[:, self.items] = weights[:, self.items] @ self.weights
        return scores


load = Ease.load


def fit(train: TrainData) -> Model:
    """Solve for B with each penalty and choose one."""
    return choose_knn(_models(train), train)


def _models(train: TrainData) -> Iterator[RecencyWeightedKnn]:
    incidence = train.train.incidence(train.n_items)
    # An item that no user has with another one has no weights, and the others' are the same without it.
    in_pairs = np.flatnonzero(incidence[np.diff(incidence.indptr) > 1].sum(axis=0))
    items = np.sort(in_pairs[np.argsort(-incidence.sum(axis=0)[in_pairs], kind="stable")[:MOST_ITEMS]])
    pair_counts = (incidence[:, items].T @ incidence[:, items]).toarray()
    for penalty in PENALTIES if train.chosen is None else (train.chosen["penalty"],):
        yield Ease(
            popularity_ranks=train.popularity_ranks,
            chosen={"penalty": penalty},
            items=items,
            weights=_solve(pair_counts, penalty),
        )


def _solve(pair_counts: NDArray[np.float32], penalty: float) -> Scores:
    """Return (m, m) weights, given the number of users who have both items (m, m)."""
    regularised: NDArray[Any] = pair_counts + penalty * np.eye(len(pair_counts), dtype=np.float32)
    # The largest eigenvalue is at most the largest sum of a row, the smallest is at least the penalty.
    if regularised.sum(axis=0, dtype=np.float64).max(initial=0) > SINGLE_PRECISION * penalty:
        regularised = regularised.astype(np.float64)
    precision = linalg.inv(regularised, overwrite_a=True, assume_a="pos")
    weights: Scores = (precision / -np.diag(precision)).astype(np.float32, copy=False)
    np.fill_diagonal(weights, 0)
    return weights
