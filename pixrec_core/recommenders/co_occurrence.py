"""Item kNN: items that occur in the same training sequences as those of the history.

Similarity is the cosine of the items' sets of users, shrunk so that pairs of few users count less (Dacrema et al. 2019,
"Are We Really Making Much Progress?"). Newer items of the history weigh more.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from pixrec_core.recommenders._recency_knn import RecencyWeightedKnn, choose_knn
from pixrec_core.recommenders.base import Model, Scores, TrainData, position_in_run

# Chosen on validation targets of fashion purchases and of film ratings.
SHRINKAGE = 50.0  # users; added to the denominator of the cosine
NEIGHBOURS = 200  # per item
PAIRS_PER_BLOCK = 8_000_000  # of items, counted at once; at most 460 MB


@dataclass(frozen=True, eq=False, kw_only=True)
class CoOccurrence(RecencyWeightedKnn):
    """Similarity to the nearest neighbours of each item.

    Attributes:
        neighbours: (n, n) similarities, at most `NEIGHBOURS` per row.
    """

    neighbours: sparse.csr_array

    def similarity(self, weights: sparse.csr_array) -> Scores:
        scores: Scores = (weights @ self.neighbours).toarray()
        return scores


load = CoOccurrence.load


def fit(train: TrainData) -> Model:
    """Find the neighbours of each item; validation targets decide the recency."""
    neighbours = _similarity(train.train.incidence(train.n_items))
    model = CoOccurrence(popularity_ranks=train.popularity_ranks, neighbours=neighbours)
    return choose_knn([model], train)


def _similarity(incidence: sparse.csr_array) -> sparse.csr_array:
    """Return (n, n) similarities from (users, n) zeros and ones."""
    by_item = incidence.T.tocsr()
    norms = np.sqrt(np.diff(by_item.indptr)).astype(np.float32)
    n = by_item.shape[0]
    step = max(1, PAIRS_PER_BLOCK // max(1, n))
    return sparse.vstack([_nearest(by_item[s : s + step] @ incidence, s, norms) for s in range(0, n, step)], "csr")


def _nearest(pair_counts: sparse.csr_array, start: int, norms: Scores) -> sparse.csr_array:
    """Return the rows of the similarity from `start` on, given the number of users who have both items."""
    pairs = pair_counts.tocoo()
    others = pairs.col != pairs.row + start
    rows, columns, counts = pairs.row[others], pairs.col[others], pairs.data[others]
    values = counts / (norms[rows + start] * norms[columns] + SHRINKAGE)
    order = np.lexsort((columns, -values, rows))
    nearest = order[position_in_run(rows[order]) < NEIGHBOURS]
    parts = (values[nearest], (rows[nearest], columns[nearest]))
    return sparse.csr_array(parts, shape=pair_counts.shape, dtype=np.float32)
