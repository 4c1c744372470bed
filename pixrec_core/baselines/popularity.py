"""The items bought most often in training, the same for everyone."""

import numpy as np

from pixrec_core.baselines._contract import FittedModel, TrainData
from pixrec_core.baselines._item_lists import ItemLists, Scores


def fit(train_data: TrainData) -> FittedModel:
    """Score every item by its occurrences in training sequences."""
    counts = np.bincount(train_data.train.values, minlength=train_data.n_items).astype(np.float32)

    def score(histories: ItemLists) -> Scores:
        return np.broadcast_to(counts, (len(histories), train_data.n_items))

    return FittedModel(score)
