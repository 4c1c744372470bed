"""Photos alone: items with photos that look like those of the history.

Photos are compared by the vectors of `model.photo_encoder`. The default, histograms of colours and edges, measures what
plain pixel similarity achieves. An item without a photo is similar to no other.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from pixrec_core.recommenders._recency_knn import RecencyWeightedKnn, fit_content
from pixrec_core.recommenders.base import Model, Scores, TrainData


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageKnn(RecencyWeightedKnn):
    """Cosine similarity of photo features.

    Attributes:
        features: (n, F) of length 1, or 0 without a photo.
    """

    features: NDArray[np.float32]

    def similarity(self, weights: sparse.csr_array) -> Scores:
        return np.asarray(weights @ self.features) @ self.features.T


load = ImageKnn.load


def fit(train: TrainData) -> Model:
    """Take the photo features; validation targets decide the weights of the history's items."""
    features = np.asarray(train.photo_features().values)
    return fit_content(ImageKnn(popularity_ranks=train.popularity_ranks, features=features), train)
