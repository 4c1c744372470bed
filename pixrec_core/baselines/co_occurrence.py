"""Item kNN: items that occur in the same training sequences as those of the history.

Similarity is the cosine of the items' user sets, shrunk so that a pair met once by chance counts
for little (Dacrema et al. 2019, "Are We Really Making Much Progress?"). Newer items of the history
weigh more, and the score is the weighted sum. A history of items without neighbours gets the
popularity order.
"""

import numpy as np
from scipy import sparse

from pixrec_core.baselines._contract import FittedModel, TrainData
from pixrec_core.baselines._item_lists import Scores
from pixrec_core.baselines._neighbours import recency_weighted_knn

# Chosen on validation targets of fashion purchases and of film ratings.
SHRINKAGE = 50.0  # users; added to the cosine's denominator
NEIGHBOURS = 200  # kept for an item
RECENCY = 2.0  # an item's weight is (1 + items after it) to the power of minus this
ROWS_AT_A_TIME = 4096  # items whose neighbours are counted at once; bounds the memory


def fit(train_data: TrainData) -> FittedModel:
    """Find each item's neighbours; score by the similarity of an item to those of the history."""
    neighbours = _similarity(train_data.train.incidence(train_data.n_items))

    def similarity(histories: sparse.csr_array) -> Scores:
        scores: Scores = (histories @ neighbours).toarray()
        return scores

    return FittedModel(recency_weighted_knn(similarity, train_data.n_items, recency=RECENCY))


def _similarity(incidence: sparse.csr_array) -> sparse.csr_array:
    """(n, n) similarities from (users, n) zeros and ones; at most `NEIGHBOURS` in a row."""
    by_item = incidence.T.tocsr()
    norms = np.sqrt(np.diff(by_item.indptr)).astype(np.float32)
    starts = range(0, by_item.shape[0], ROWS_AT_A_TIME)
    return sparse.vstack([_nearest(by_item[s : s + ROWS_AT_A_TIME] @ incidence, s, norms) for s in starts], "csr")


def _nearest(together: sparse.csr_array, start: int, norms: Scores) -> sparse.csr_array:
    """Rows `start` and on of the similarity, from counts of users who have both items."""
    pairs = together.tocoo()
    others = pairs.col != pairs.row + start
    rows, columns, counts = pairs.row[others], pairs.col[others], pairs.data[others]
    values = counts / (norms[rows + start] * norms[columns] + SHRINKAGE)
    order = np.lexsort((columns, -values, rows))
    place = np.arange(len(order)) - np.searchsorted(rows[order], rows[order])
    kept = order[place < NEIGHBOURS]
    return sparse.csr_array((values[kept], (rows[kept], columns[kept])), shape=together.shape, dtype=np.float32)
