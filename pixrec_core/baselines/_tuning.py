"""Choice of settings by validation targets, the same way for every baseline that has any."""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from pixrec_core.baselines._contract import FittedModel, TrainData
from pixrec_core.baselines._item_lists import Scorer
from pixrec_core.evaluation import metrics
from pixrec_core.ranking_table import popularity_places

USERS = 2000  # validated at most, evenly spaced; a standard error of under one point of NDCG@10
AT_A_TIME = 256  # users scored in a batch
NDCG = "validation_ndcg@10"


class Validation:
    """Tells how well a scorer ranks validation targets among the whole catalogue."""

    def __init__(self, train_data: TrainData) -> None:
        users = len(train_data.validation)
        drawn = np.zeros(users, bool)
        drawn[np.linspace(0, users - 1, min(USERS, users)).astype(np.int64)] = True
        self._histories = train_data.validation.of_users(drawn)
        self._targets = train_data.targets[drawn]
        self._places = popularity_places(np.bincount(train_data.train.values, minlength=train_data.n_items))

    def ndcg(self, score: Scorer) -> float:
        """Mean NDCG@10, items of the history included, ties as in rankings; 0 without validation users."""
        batches = self._histories.batches(AT_A_TIME)
        ranks = [self._ranks(score(some), self._targets[users]) for users, some in batches]
        return float(metrics.ndcg(np.concatenate(ranks), 10).mean()) if ranks else 0.0

    def _ranks(self, scores: NDArray[np.float32], targets: NDArray[np.int64]) -> metrics.PerUser:
        """Rank of each target from (B, n) scores; (B,)."""
        own = np.take_along_axis(scores, targets[:, None], axis=1)
        tied_before = (scores == own) & (self._places < self._places[targets][:, None])
        ranks: metrics.PerUser = 1.0 + ((scores > own) | tied_before).sum(axis=1)
        return ranks


def best(candidates: Iterable[tuple[Mapping[str, float], Scorer]], train_data: TrainData) -> FittedModel:
    """The candidate with the highest validation NDCG@10, of equal ones the first.

    Args:
        candidates: settings and the scorer that they make; only the best so far is kept in memory.
        train_data: whose validation targets decide.
    """
    validation = Validation(train_data)
    scored = (FittedModel(score, {**chosen, NDCG: validation.ndcg(score)}) for chosen, score in candidates)
    return max(scored, key=lambda fitted: fitted.chosen[NDCG])
