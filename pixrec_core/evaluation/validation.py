"""Selection of validation users, and the rank of a target among scores of the whole catalogue."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pixrec_core.evaluation.metrics import PerUser

TUNING_USERS: Final = 2_000  # at most; a standard error of about one point of Recall@10
STACKING_USERS: Final = 20_000  # at most
SELECTION_SHARE: Final = 0.2  # of the stacking users
SEED: Final = 0


def tuning_users(n_users: int) -> NDArray[np.bool_]:
    """Return a mask (users,) of the validation users for the choice of settings and epochs.

    They are at most `TUNING_USERS` and at most half of all, rounded up: the others are for `stacking_users`.

    Args:
        n_users: users of the validation split, sorted by id.
    """
    return _drawn(n_users, 0, _n_tuning(n_users))


def stacking_users(n_users: int) -> NDArray[np.bool_]:
    """Return a mask (users,) of the validation users for the training of the blend.

    None of them is a tuning user: to every method, their targets must be as unknown as test targets.
    """
    return _drawn(n_users, _n_tuning(n_users), STACKING_USERS)


def selection_users(n_users: int) -> NDArray[np.bool_]:
    """Return a mask (users,) of the validation users for the choice of the method that serves.

    They are stacking users from whom the measured blend does not learn. So no method has learned from their targets.
    """
    start = _n_tuning(n_users)
    n_stacking = min(STACKING_USERS, n_users - start)
    n_selection = round(SELECTION_SHARE * n_stacking)
    return _drawn(n_users, start + n_stacking - n_selection, n_selection)


def _n_tuning(n_users: int) -> int:
    return min(TUNING_USERS, (n_users + 1) // 2)


def _drawn(n_users: int, start: int, size: int) -> NDArray[np.bool_]:
    drawn = np.zeros(n_users, np.bool_)
    drawn[np.random.default_rng(SEED).permutation(n_users)[start : start + size]] = True
    return drawn


def target_ranks(
    scores: NDArray[np.float32], targets: NDArray[np.int64], popularity_ranks: NDArray[np.int64]
) -> PerUser:
    """Return the rank (B,) of each target, from 1. Equal scores are ordered as in rankings.

    A score that is not a number ranks its target last, and ranks before the target of another item.

    Args:
        scores: (B, n).
        targets: (B,) items.
        popularity_ranks: (n,) from `ranking_table.popularity_ranks`; orders equal scores.
    """
    target_scores = np.take_along_axis(scores, targets[:, None], axis=1)
    before = ~(scores <= target_scores)
    before |= (scores == target_scores) & (popularity_ranks < popularity_ranks[targets][:, None])
    ranks: PerUser = np.minimum(1.0 + before.sum(axis=1), scores.shape[1])
    return ranks
