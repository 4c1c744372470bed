"""EASE: a linear model of which items of a history speak for which others, in closed form.

B = I - P / diag(P) with P = (X'X + penalty I)^-1 and X the training users' items (Steck 2019,
"Embarrassingly Shallow Autoencoders for Sparse Data", equation 8); its diagonal is 0. It knows no
order, so how much newer items of a history weigh is chosen on validation targets, as is the penalty.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse

from pixrec_core.baselines._contract import FittedModel, TrainData
from pixrec_core.baselines._item_lists import Scorer, Scores
from pixrec_core.baselines._neighbours import Similarity, recency_weighted_knn
from pixrec_core.baselines._tuning import best

MOST_ITEMS = 8_000  # the most popular ones; 2 GB of memory, and time grows with the third power. Others score 0
PENALTIES = (50.0, 250.0, 1000.0, 2500.0)  # users
RECENCIES = (0.5, 1.0, 2.0, 4.0)


def fit(train_data: TrainData) -> FittedModel:
    """Solve for the weights of item on item."""
    return best(_candidates(train_data), train_data)


def _candidates(train_data: TrainData) -> Iterator[tuple[Mapping[str, float], Scorer]]:
    bought = train_data.train.incidence(train_data.n_items)
    kept = np.sort(np.argsort(-bought.sum(axis=0), kind="stable")[:MOST_ITEMS])
    together = (bought[:, kept].T @ bought[:, kept]).toarray().astype(np.float64)
    for penalty in PENALTIES:
        similarity = _spread(_weights(together, penalty), kept)
        for recency in RECENCIES:
            scorer = recency_weighted_knn(similarity, train_data.n_items, recency=recency)
            yield {"penalty": penalty, "recency": recency}, scorer


def _weights(together: NDArray[np.float64], penalty: float) -> Scores:
    """(k, k) weights, from counts of users who have both items, (k, k)."""
    regular = together + penalty * np.eye(len(together))
    precision = linalg.inv(regular, overwrite_a=True, assume_a="pos")
    weights: Scores = (precision / -np.diag(precision)).astype(np.float32)
    np.fill_diagonal(weights, 0)
    return weights


def _spread(weights: Scores, kept: NDArray[np.int64]) -> Similarity:
    """The weights of the `kept` items as likeness of all."""

    def similarity(histories: sparse.csr_array) -> Scores:
        scores = np.zeros(histories.shape, np.float32)
        scores[:, kept] = histories[:, kept] @ weights
        return scores

    return similarity
