"""People buy again what they bought last: the history from newest to oldest, then popularity."""

import numpy as np

from pixrec_core.baselines._contract import FittedModel, TrainData
from pixrec_core.baselines._item_lists import ItemLists, Scores


def fit(train_data: TrainData) -> FittedModel:
    """Score each item of the history by how new it is, all others alike; popularity breaks the ties."""

    def score(histories: ItemLists) -> Scores:
        scores = np.zeros((len(histories), train_data.n_items), np.float32)
        np.maximum.at(scores, (histories.rows, histories.values), 1 / (1 + histories.from_newest).astype(np.float32))
        return scores

    return FittedModel(score)
