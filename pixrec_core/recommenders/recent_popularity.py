"""The items that occur most often in the newest training interactions, the same for every user.

Validation targets decide how many of the newest interactions count. The window starts at the same instant for all
users. Items with equal counts are ordered by their popularity in all of training.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pixrec_core.recommenders._tuning import choose_model
from pixrec_core.recommenders.base import Model, TrainData
from pixrec_core.recommenders.popularity import Popularity

NEWEST = (0.05, 0.1, 0.25, 0.5)  # shares of the training interactions


@dataclass(frozen=True, eq=False, kw_only=True)
class RecentPopularity(Popularity):
    """`Popularity` within a window of time."""


load = RecentPopularity.load


def fit(train: TrainData) -> Model:
    """Count the occurrences of each item in the newest training interactions."""
    return choose_model(_models(train), train)


def _models(train: TrainData) -> Iterator[RecentPopularity]:
    newest_first = np.sort(train.times)[::-1]
    for share in NEWEST:
        # The window includes all interactions of its first instant.
        since = newest_first[: max(1, round(share * len(newest_first)))].min(initial=newest_first.max(initial=0))
        recent = train.train.values[train.times >= since]
        yield RecentPopularity(
            popularity_ranks=train.popularity_ranks,
            chosen={"newest_share": share},
            counts=np.bincount(recent, minlength=train.n_items).astype(np.float32),
        )
