"""The items that occur most often in training, the same for every user."""

from dataclasses import dataclass

import numpy as np

from pixrec_core.recommenders.base import ItemLists, Model, Scores, TrainData


@dataclass(frozen=True, eq=False, kw_only=True)
class Popularity(Model):
    """Gives every history the same scores.

    Attributes:
        counts: (n,) occurrences of each item.
    """

    counts: Scores

    def scores(self, histories: ItemLists) -> Scores:
        return np.broadcast_to(self.counts, (len(histories), self.n_items))


load = Popularity.load


def fit(train: TrainData) -> Model:
    """Count the occurrences of each item in training sequences."""
    return Popularity(popularity_ranks=train.popularity_ranks, counts=train.train_counts.astype(np.float32))
