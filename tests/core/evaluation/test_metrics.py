from math import inf, log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from pixrec_core.evaluation.metrics import METRICS, ndcg, per_user, recall, reciprocal_rank

RANKS = np.array([1, 2, 5, 10, 11, inf])


def test_by_hand():
    assert recall(RANKS, 5).tolist() == [1, 1, 1, 0, 0, 0]
    assert np.allclose(ndcg(RANKS, 10), [1, 1 / log2(3), 1 / log2(6), 1 / log2(11), 0, 0])
    assert np.allclose(reciprocal_rank(RANKS), [1, 1 / 2, 1 / 5, 1 / 10, 1 / 11, 0])


def test_columns_follow_the_names():
    assert list(METRICS) == ["Recall@1", "Recall@5", "Recall@10", "Recall@20", "NDCG@5", "NDCG@10", "MRR"]
    assert np.allclose(per_user(np.array([2.0, inf])), [[0, 1, 1, 1, 1 / log2(3), 1 / log2(3), 0.5], [0] * 7])


@pytest.mark.parametrize("k", [1, 5, 10])
def test_ndcg_equals_scikit_learn(k):
    relevance = np.eye(30)[:15]  # the target of user u is at rank u + 1
    scores = np.tile(np.arange(30, 0, -1.0), (15, 1))
    expected = [ndcg_score(relevance[u : u + 1], scores[u : u + 1], k=k) for u in range(15)]
    assert np.allclose(ndcg(np.arange(1, 16.0), k), expected)


@given(st.lists(st.integers(1, 50), min_size=1), st.integers(1, 50))
def test_all_equal_plain_loops(ranks, k):
    found = np.array(ranks, float)
    assert recall(found, k).tolist() == [1.0 if rank in range(1, k + 1) else 0.0 for rank in ranks]
    assert np.allclose(ndcg(found, k), [1 / log2(rank + 1) if rank <= k else 0 for rank in ranks])
    assert (ndcg(found, k) <= recall(found, k)).all()
