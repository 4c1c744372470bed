"""Photos alone: the items whose photos look most like those of the history.

The features are colours and edges, counted by `data.photo_features`: no network and no pretrained
weights, so that it measures what plain likeness of pixels is worth. An item without a photo is like
no other.
"""

import numpy as np
from scipy import sparse

from pixrec_core.baselines._contract import FittedModel, TrainData
from pixrec_core.baselines._item_lists import Scores
from pixrec_core.baselines._neighbours import fit_content


def fit(train_data: TrainData) -> FittedModel:
    """Score by the cosine of photo features; how the history's items weigh is chosen on validation targets."""
    features = train_data.photo_features()

    def similarity(histories: sparse.csr_array) -> Scores:
        return np.asarray(histories @ features) @ features.T

    return fit_content(similarity, train_data)
