"""Item kNN: scores by similarity to the items of the history. Each method defines the similarity."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from scipy import sparse

from pixrec_core.recommenders._tuning import choose_model
from pixrec_core.recommenders.base import ItemLists, Model, Scores, TrainData

RECENCIES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # from equal weights to the newest item alone


@dataclass(frozen=True, eq=False, kw_only=True)
class RecencyWeightedKnn(Model):
    """Sums an item's similarity to the items of the history; newer ones weigh more.

    Attributes:
        recency: an item's weight is (1 + number of items after it) to the power of minus this.
        repeats: whether items of the history keep their scores; otherwise they score 0.
    """

    recency: float = 1.0
    repeats: bool = True

    @abstractmethod
    def similarity(self, weights: sparse.csr_array) -> Scores:
        """Return the weighted sum (B, n) of similarities to the items with `weights` (B, n)."""

    def scores(self, histories: ItemLists) -> Scores:
        weights = (1 + histories.from_newest).astype(np.float32) ** -np.float32(self.recency)
        scores = self.similarity(histories.matrix(self.n_items, weights))
        if not self.repeats:
            scores[histories.rows, histories.values] = 0
        return scores


def with_recencies(model: RecencyWeightedKnn) -> Iterator[RecencyWeightedKnn]:
    """Yield the model with each of `RECENCIES`, which `chosen` records."""
    for recency in RECENCIES:
        yield replace(model, recency=recency, chosen={**model.chosen, "recency": recency})


def fit_content(model: RecencyWeightedKnn, train: TrainData) -> Model:
    """Choose the recency, and whether seen items keep their scores: each is most similar to itself in content."""
    models = (
        replace(model, recency=recency, repeats=repeats, chosen={"recency": recency, "repeats": repeats})
        for recency, repeats in product(RECENCIES, (True, False))
    )
    return choose_model(models, train)
