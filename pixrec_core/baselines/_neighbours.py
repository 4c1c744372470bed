"""Scores by likeness to the items of the history, whatever makes two items alike."""

from collections.abc import Callable
from itertools import product

import numpy as np
from scipy import sparse

from pixrec_core.baselines._contract import FittedModel, TrainData
from pixrec_core.baselines._item_lists import ItemLists, Scorer, Scores
from pixrec_core.baselines._tuning import best

RECENCIES = (1.0, 2.0, 4.0)

#: (B, n) weights of the items of histories -> (B, n) weighted sums of each item's likeness to them.
Similarity = Callable[[sparse.csr_array], Scores]


def recency_weighted_knn(similarity: Similarity, n_items: int, *, recency: float, repeats: bool = True) -> Scorer:
    """A scorer that sums an item's likeness to those of the history, newer ones weighing more.

    Args:
        similarity: likeness of items, 0 where two have nothing in common.
        n_items: n, items of the catalogue.
        recency: an item weighs (1 + items after it) to the power of minus this.
        repeats: whether the history's own items keep their scores; else they score 0.
    """

    def score(histories: ItemLists) -> Scores:
        weights = (1 + histories.from_newest).astype(np.float32) ** -np.float32(recency)
        scores = similarity(histories.matrix(n_items, weights))
        if not repeats:
            scores[histories.rows, histories.values] = 0
        return scores

    return score


def fit_content(similarity: Similarity, train_data: TrainData) -> FittedModel:
    """A baseline by the likeness of contents, under which an item is likest to itself.

    Chosen on validation targets: how much newer items of the history weigh, and whether its own
    items are candidates, which serves people who buy again and is in the way of all others.
    """
    candidates = (
        (
            {"recency": r, "repeats": repeats},
            recency_weighted_knn(similarity, train_data.n_items, recency=r, repeats=repeats),
        )
        for r, repeats in product(RECENCIES, (True, False))
    )
    return best(candidates, train_data)
