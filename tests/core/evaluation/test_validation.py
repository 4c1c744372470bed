import numpy as np
import pytest

from pixrec_core.evaluation.validation import stacking_users, target_ranks, tuning_users

UNPOPULAR_FIRST = np.arange(4)[::-1]


@pytest.mark.parametrize(("users", "tuning"), [(0, 0), (1, 1), (2, 1), (7, 4), (4_000, 2_000), (30_000, 2_000)])
def test_users_decide_settings_or_train_a_blend(users, tuning):
    chosen, stacked = tuning_users(users), stacking_users(users)
    assert chosen.sum() == tuning
    assert stacked.sum() == min(users - tuning, 20_000)
    assert not (chosen & stacked).any()
    assert (chosen == tuning_users(users)).all(), "the draw is the same each time"


def test_the_rank_counts_higher_scores_and_more_popular_ties():
    scores = np.array([[3, 2, 2, 1], [0, 0, 0, 0]], np.float32)
    assert target_ranks(scores, np.array([1, 0]), np.arange(4)).tolist() == [2, 1]
    assert target_ranks(scores, np.array([1, 0]), UNPOPULAR_FIRST).tolist() == [3, 4]


def test_scores_that_are_not_numbers_rank_the_target_last():
    scores = np.array([[np.nan] * 4, [np.nan, 1, 2, 0]], np.float32)
    assert target_ranks(scores, np.array([1, 1]), np.arange(4)).tolist() == [4, 3]
