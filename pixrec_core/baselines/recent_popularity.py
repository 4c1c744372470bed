"""The items bought most often of late: fashion changes, and last season's best seller is no longer one.

How late is chosen on validation targets: the newest share of the training interactions, the same
instant for all users. Items alike in it go by their popularity in all of training.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from pixrec_core.baselines._contract import FittedModel, TrainData
from pixrec_core.baselines._item_lists import ItemLists, Scorer, Scores
from pixrec_core.baselines._tuning import best

NEWEST = (0.05, 0.1, 0.25, 0.5)  # shares of the training interactions


def fit(train_data: TrainData) -> FittedModel:
    """Score every item by its occurrences in the newest training interactions."""
    return best(_candidates(train_data), train_data)


def _candidates(train_data: TrainData) -> Iterator[tuple[Mapping[str, float], Scorer]]:
    newest_first = np.sort(train_data.times)[::-1]
    for share in NEWEST:
        # Whatever happened at the very instant where the window starts is in it: ties are not torn apart.
        since = newest_first[: max(1, round(share * len(newest_first)))].min(initial=newest_first.max(initial=0))
        recent = train_data.train.values[train_data.times >= since]
        yield {"newest_share": share}, _by(np.bincount(recent, minlength=train_data.n_items).astype(np.float32))


def _by(counts: Scores) -> Scorer:
    """A scorer that gives everyone the same (n,) scores."""

    def score(histories: ItemLists) -> Scores:
        return np.broadcast_to(counts, (len(histories), len(counts)))

    return score
