"""Item kNN: scores by similarity to the items of the history. Each method defines the similarity."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, product

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from pixrec_core.recommenders._tuning import best_model, choose_model, validation_ndcgs
from pixrec_core.recommenders.base import ItemLists, Model, Scores, TrainData

RECENCIES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # from equal weights to the newest item alone
SIMILARITIES = 64_000_000  # item pairs whose similarity is in memory while the settings are chosen, at most; 256 MB


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
        return self._settle(histories, self.similarity(histories.matrix(self.n_items, self._weights(histories))))

    def scores_of(self, variants: Sequence["RecencyWeightedKnn"], histories: ItemLists) -> Iterator[Scores]:
        """Yield the scores (B, n) by each variant, which differs in recency and repeats only.

        The similarity to each item of the histories is computed once for all variants, unless they are too many.
        """
        items, columns = np.unique(histories.values, return_inverse=True)
        if len(items) * self.n_items > SIMILARITIES:
            yield from (variant.scores(histories) for variant in variants)
            return
        one_each = (np.ones(len(items), np.float32), items, np.arange(len(items) + 1))
        similarity = self.similarity(sparse.csr_array(one_each, shape=(len(items), self.n_items)))
        in_columns = replace(histories, values=columns)
        for variant in variants:
            weights = in_columns.matrix(len(items), variant._weights(histories))
            yield variant._settle(histories, weights @ similarity)

    def _weights(self, histories: ItemLists) -> NDArray[np.float32]:
        weights: NDArray[np.float32] = (1 + histories.from_newest).astype(np.float32) ** -np.float32(self.recency)
        return weights

    def _settle(self, histories: ItemLists, scores: Scores) -> Scores:
        """Set the scores of seen items to 0 in place, unless they keep theirs."""
        if not self.repeats:
            scores[histories.rows, histories.values] = 0
        return scores


def choose_knn(
    models: Iterable[RecencyWeightedKnn], train: TrainData, repeats: Sequence[bool] = (True,)
) -> RecencyWeightedKnn:
    """Return the model, recency and value of `repeats` with the highest validation NDCG@10, or those of `train.chosen`.

    `chosen` records `repeats` only if there is a choice.
    """
    grids = (list(_variants(model, repeats)) for model in models)
    if train.chosen is not None:
        return choose_model(chain.from_iterable(grids), train)
    mean_length = len(train.validation.values) // max(1, len(train.validation))
    users_per_batch = max(1, SIMILARITIES // (2 * (1 + mean_length) * train.n_items))  # some are longer

    def measure(grid: list[RecencyWeightedKnn]) -> Iterator[tuple[RecencyWeightedKnn, float]]:
        ndcgs = validation_ndcgs(len(grid), train, users_per_batch, partial(grid[0].scores_of, grid))
        yield from zip(grid, ndcgs, strict=True)

    return best_model(chain.from_iterable(map(measure, grids)))


def _variants(model: RecencyWeightedKnn, repeats: Sequence[bool]) -> Iterator[RecencyWeightedKnn]:
    for recency, repeat in product(RECENCIES, repeats):
        chosen = {**model.chosen, "recency": recency} | ({"repeats": repeat} if len(repeats) > 1 else {})
        yield replace(model, recency=recency, repeats=repeat, chosen=chosen)


def fit_content(model: RecencyWeightedKnn, train: TrainData) -> Model:
    """Choose the recency, and whether seen items keep their scores: each is most similar to itself in content."""
    return choose_knn([model], train, repeats=(True, False))
