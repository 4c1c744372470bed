"""Repeat purchases: the items of the history from newest to oldest, then the popularity order."""

from dataclasses import dataclass

import numpy as np

from pixrec_core.recommenders.base import ItemLists, Model, Scores, TrainData


@dataclass(frozen=True, eq=False, kw_only=True)
class RepeatLast(Model):
    """Scores an item of the history by how new it is, and every other item 0."""

    def scores(self, histories: ItemLists) -> Scores:
        scores = np.zeros((len(histories), self.n_items), np.float32)
        np.maximum.at(scores, (histories.rows, histories.values), 1 / (1 + histories.from_newest).astype(np.float32))
        return scores


load = RepeatLast.load


def fit(train: TrainData) -> Model:
    """Learn the popularity order only."""
    return RepeatLast(popularity_ranks=train.popularity_ranks)
