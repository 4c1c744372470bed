"""Text alone: BM25 of each item's text, with the texts of the history as the query.

It learns nothing from interactions, so a new item gets as good a score as an old one.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from pixrec_core.data.text_search import TextSearch
from pixrec_core.recommenders._recency_knn import RecencyWeightedKnn, fit_content
from pixrec_core.recommenders.base import Model, Scores, TrainData

QUERIES_PER_BLOCK = 256  # whose words are a dense array at once


@dataclass(frozen=True, eq=False, kw_only=True)
class Bm25Text(RecencyWeightedKnn):
    """BM25 similarity of item texts with w different words.

    Attributes:
        word_counts: (n, w) occurrences of each word in each text.
        word_gains: (w, n) BM25 of each text for each word.
    """

    word_counts: sparse.csr_array
    word_gains: sparse.csr_array

    def similarity(self, weights: sparse.csr_array) -> Scores:
        # Nearly every text has a word of a query: for so dense a result, a sparse product takes twice as long.
        queries, scores = weights @ self.word_counts, np.empty(weights.shape, np.float32)
        for start in range(0, len(scores), QUERIES_PER_BLOCK):
            block = slice(start, start + QUERIES_PER_BLOCK)
            scores[block] = (self.word_gains.T @ queries[block].T.toarray()).T
        return scores


load = Bm25Text.load


def fit(train: TrainData) -> Model:
    """Index the texts; validation targets decide the weights of the history's items in the query."""
    search = TextSearch(train.texts)
    model = Bm25Text(
        popularity_ranks=train.popularity_ranks,
        word_counts=search.counts,
        word_gains=sparse.csr_array(search.weights.T),
    )
    return fit_content(model, train)
