"""The items bought most often in training, the same for everyone."""

import numpy as np

from pixrec_core.baselines._contract import Fitted, Knowledge
from pixrec_core.baselines._item_lists import ItemLists, Scores


def fit(knowledge: Knowledge) -> Fitted:
    """Score every item by its occurrences in training sequences."""
    counts = np.bincount(knowledge.train.values, minlength=knowledge.n_items).astype(np.float32)

    def score(histories: ItemLists) -> Scores:
        return np.broadcast_to(counts, (len(histories), knowledge.n_items))

    return Fitted(score)
