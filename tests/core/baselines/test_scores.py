"""Scores of each baseline, by hand."""

from math import sqrt

import numpy as np
import pytest

from pixrec_core.baselines import co_occurrence, memoriser, popularity, repeat_last
from pixrec_core.baselines._item_lists import ItemLists


def scores(module, train, histories, n_items):
    return module.fit(ItemLists.from_lists(train), n_items)(ItemLists.from_lists(histories)).tolist()


def test_popularity_counts_occurrences():
    assert scores(popularity, [[0, 1, 1], [1]], [[2], [0]], 3) == [[1, 3, 0], [1, 3, 0]]


def test_repeat_last_goes_from_newest_to_oldest():
    assert scores(repeat_last, [], [[0, 1, 2], [1, 2, 1]], 4) == [
        [np.float32(1 / 3), 0.5, 1, 0],
        [0, 1, 0.5, 0],
    ]


def test_co_occurrence_is_a_shrunk_cosine_weighted_by_recency(monkeypatch):
    monkeypatch.setattr(co_occurrence, "SHRINKAGE", 1.0)
    monkeypatch.setattr(co_occurrence, "RECENCY", 1.0)
    train = [[0, 1], [0, 1, 1], [0, 2]]  # item 0: 3 users, 1: 2, 2: 1; together 0-1: 2, 0-2: 1
    near, far = 2 / (sqrt(3 * 2) + 1), 1 / (sqrt(3 * 1) + 1)
    expected = [[0, near, far], [near + far / 2, 0, 0]]
    assert np.allclose(scores(co_occurrence, train, [[0], [2, 1]], 3), expected)


def test_co_occurrence_keeps_the_nearest_neighbours_whatever_the_blocks(monkeypatch):
    lists = np.random.default_rng(1).integers(0, 12, (60, 5)).tolist()
    has = np.zeros((60, 12))
    for user, items in enumerate(lists):
        has[user, items] = 1
    together = has.T @ has
    dense = together / (np.sqrt(np.outer(has.sum(0), has.sum(0))) + co_occurrence.SHRINKAGE)
    np.fill_diagonal(dense, 0)
    for row in dense:
        row[np.argsort(-row, kind="stable")[3:]] = 0
    monkeypatch.setattr(co_occurrence, "NEIGHBOURS", 3)
    monkeypatch.setattr(co_occurrence, "ROWS_AT_A_TIME", 5)
    assert np.allclose(scores(co_occurrence, lists, [[i] for i in range(12)], 12), dense, atol=1e-6)


def test_memoriser_prefers_what_followed_both():
    train = [[0, 1, 2], [0, 1, 2], [0, 1, 3], [4, 1, 4], [5, 0]]
    # After (0, 1): 2 twice, 3 once. After 1 alone: 2 twice, 3 and 4 once.
    assert np.allclose(scores(memoriser, train, [[0, 1]], 6), [[0, 0, 1 + 2 / 3, 1 + 1 / 3, 1 / 4, 0]])


def test_memoriser_backs_off_to_the_last_item_then_to_nothing():
    train = [[0, 1, 2], [0, 1, 3]]
    assert np.allclose(scores(memoriser, train, [[3, 1], [1], [2]], 4), [[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5], [0] * 4])


def test_memoriser_does_not_reach_over_the_end_of_a_sequence():
    assert scores(memoriser, [[0], [1, 2]], [[0], [0, 1]], 3) == [[0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize("module", [co_occurrence, memoriser])
def test_nothing_to_learn_from(module):
    assert scores(module, [[0]], [[0], [0, 1]], 2) == [[0, 0], [0, 0]]


def test_counting_leaves_the_lists_alone():
    lists = ItemLists.from_lists([[1, 1, 0], [2]])
    assert lists.incidence(3).toarray().tolist() == [[1, 1, 0], [0, 0, 1]]
    assert lists.values.tolist() == [1, 1, 0, 2]
    assert lists.from_newest.tolist() == [2, 1, 0, 0]
