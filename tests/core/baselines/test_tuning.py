from math import log2

import numpy as np
import pytest

from pixrec_core.baselines import _tuning
from pixrec_core.baselines._tuning import Validation, best
from tests.core.baselines.told import told


def constant(*scores):
    return lambda histories: np.broadcast_to(np.float32(scores), (len(histories), len(scores)))


def test_ndcg_by_hand():
    train_data = told([[1, 1, 2]], 3, validation=[([0], 0), ([0], 1), ([0], 2)])
    assert Validation(train_data).ndcg(constant(3, 2, 1)) == pytest.approx((1 + 1 / log2(3) + 1 / log2(4)) / 3)


def test_equal_scores_go_by_popularity_then_index():
    train_data = told([[2, 2, 1]], 4, validation=[([0], 3)])
    assert Validation(train_data).ndcg(constant(0, 0, 0, 0)) == pytest.approx(1 / log2(1 + 4))
    train_data = told([[2, 2, 1]], 4, validation=[([0], 2)])
    assert Validation(train_data).ndcg(constant(0, 0, 0, 0)) == 1


def test_past_ten_counts_nothing():
    train_data = told([], 11, validation=[([0], 10)])
    assert Validation(train_data).ndcg(constant(*range(11, 0, -1))) == 0


def test_many_users_are_thinned_evenly(monkeypatch):
    monkeypatch.setattr(_tuning, "USERS", 3)
    seen = []

    def score(histories):
        seen.extend(histories.values.tolist())
        return np.zeros((len(histories), 9), np.float32)

    Validation(told([], 9, validation=[([user], 0) for user in range(9)])).ndcg(score)
    assert seen == [0, 4, 8]


def test_the_best_is_kept_and_the_first_of_equals():
    train_data = told([], 2, validation=[([0], 1)])
    candidates = [({"n": 1}, constant(1, 0)), ({"n": 2}, constant(0, 1)), ({"n": 3}, constant(0, 5))]
    fitted = best(iter(candidates), train_data)
    assert fitted.chosen == {"n": 2, "validation_ndcg@10": 1}
    assert fitted.score is candidates[1][1]


def test_without_validation_targets_the_first_is_kept():
    fitted = best([({"n": 1}, constant(0)), ({"n": 2}, constant(0))], told([[0]], 1))
    assert fitted.chosen == {"n": 1, "validation_ndcg@10": 0}
