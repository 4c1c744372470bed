from dataclasses import dataclass, replace
from functools import partial
from math import log2

import numpy as np
import pytest

from pixrec_core.errors import ArtefactError
from pixrec_core.recommenders import _recency_knn, bm25_text
from pixrec_core.recommenders._tuning import choose_model, validation_ndcg, validation_ndcgs
from pixrec_core.recommenders.base import Model
from tests.core.recommenders.train_data import make_train_data


@dataclass(frozen=True, eq=False, kw_only=True)
class Constant(Model):
    values: tuple[float, ...]

    def scores(self, histories):
        return np.broadcast_to(np.float32(self.values), (len(histories), len(self.values)))


def constant(*values, **chosen):
    return Constant(popularity_ranks=np.arange(len(values)), values=values, chosen=chosen)


def test_ndcg_by_hand():
    train = make_train_data([[1, 1, 2]], 3, validation=[([0], 0), ([0], 1), ([0], 2)])
    assert validation_ndcg(constant(3, 2, 1), train) == pytest.approx((1 + 1 / log2(3) + 1 / log2(4)) / 3)


@pytest.mark.parametrize(("target", "rank"), [(3, 4), (2, 1)])
def test_equal_scores_are_ordered_by_popularity_then_index(target, rank):
    train = make_train_data([[2, 2, 1]], 4, validation=[([0], target)])
    assert validation_ndcg(constant(0, 0, 0, 0), train) == pytest.approx(1 / log2(1 + rank))


def test_a_rank_past_ten_scores_zero():
    train = make_train_data([], 11, validation=[([0], 10)])
    assert validation_ndcg(constant(*range(11, 0, -1)), train) == 0


def test_the_best_model_is_chosen_and_the_first_of_equal_ones():
    train = make_train_data([], 2, validation=[([0], 1)])
    model = choose_model(iter([constant(1, 0, n=1), constant(0, 1, n=2), constant(0, 5, n=3)]), train)
    assert model.chosen == {"n": 2, "validation_ndcg@10": 1}
    assert model.values == (0, 1)


def test_without_validation_targets_the_first_is_chosen():
    model = choose_model([constant(0, n=1), constant(0, n=2)], make_train_data([[0]], 1))
    assert model.chosen == {"n": 1, "validation_ndcg@10": 0}


def test_a_setting_that_is_no_longer_tried_is_named():
    train = replace(make_train_data([[0]], 1), chosen={"n": 9, "validation_ndcg@10": 0.5})
    with pytest.raises(ArtefactError, match=r"fitted with \{'n': 9\}, which this version does not try"):
        choose_model([constant(0, n=1)], train)


@pytest.mark.parametrize("similarities", [_recency_knn.SIMILARITIES, 100], ids=["in memory", "too many"])
@pytest.mark.parametrize("users_per_batch", [1, 100], ids=["user by user", "all users"])
def test_the_grid_of_a_knn_is_measured_as_its_models_are(monkeypatch, users_per_batch, similarities):
    monkeypatch.setattr(_recency_knn, "SIMILARITIES", similarities)
    random = np.random.default_rng(0)
    lists = random.integers(0, 40, (60, 6)).tolist()
    validation = [(random.integers(0, 40, n).tolist(), n) for n in range(30)]
    texts = [" ".join(f"word{n}" for n in random.integers(0, 12, 5)) for _ in range(40)]
    train = make_train_data(lists, 40, texts=texts, validation=validation)
    fitted = bm25_text.fit(train)
    variants = [replace(fitted, recency=r, repeats=repeats) for r in (0.0, 0.5, 8.0) for repeats in (True, False)]
    expected = [validation_ndcg(variant, train) for variant in variants]
    assert len(set(expected)) > 2
    found = validation_ndcgs(len(variants), train, users_per_batch, partial(fitted.scores_of, variants))
    np.testing.assert_allclose(found, expected, atol=1e-12)
