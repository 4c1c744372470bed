import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixrec_core.evaluation.validation import selection_users, stacking_users, target_ranks, tuning_users
from pixrec_core.ranking_table import top_items

UNPOPULAR_FIRST = np.arange(4)[::-1]


@pytest.mark.parametrize(("users", "tuning"), [(0, 0), (1, 1), (2, 1), (7, 4), (4_000, 2_000), (30_000, 2_000)])
def test_users_decide_settings_or_train_a_blend(users, tuning):
    chosen, stacked = tuning_users(users), stacking_users(users)
    assert chosen.sum() == tuning
    assert stacked.sum() == min(users - tuning, 20_000)
    assert not (chosen & stacked).any()
    assert (chosen == tuning_users(users)).all(), "the draw is the same each time"
    selecting = selection_users(users)
    assert selecting.sum() == round(0.2 * stacked.sum())
    assert not (selecting & ~stacked).any()


def test_the_rank_counts_higher_scores_and_more_popular_ties():
    scores = np.array([[3, 2, 2, 1], [0, 0, 0, 0]], np.float32)
    assert target_ranks(scores, np.array([1, 0]), np.arange(4)).tolist() == [2, 1]
    assert target_ranks(scores, np.array([1, 0]), UNPOPULAR_FIRST).tolist() == [3, 4]


def test_scores_that_are_not_numbers_rank_the_target_last():
    scores = np.array([[np.nan] * 4, [np.nan, 1, 2, 0]], np.float32)
    assert target_ranks(scores, np.array([1, 1]), np.arange(4)).tolist() == [4, 3]


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.randoms(use_true_random=False), st.data())
def test_the_rank_is_the_position_in_the_ranking(scores, random, data):
    order = np.array(random.sample(range(len(scores)), len(scores)))
    target = data.draw(st.integers(0, len(scores) - 1))
    ranking, _ = top_items(np.float32([scores]), np.array([len(scores)]), order)
    (rank,) = target_ranks(np.float32([scores]), np.array([target]), order)
    assert ranking[0, int(rank) - 1] == target
