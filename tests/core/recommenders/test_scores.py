"""Scores of each method, by hand."""

from math import log, sqrt

import bm25s
import numpy as np
import pytest

from pixrec_core.recommenders import (
    _recency_knn,
    bm25_text,
    co_occurrence,
    ease,
    image_knn,
    markov_chain,
    popularity,
    recent_popularity,
    repeat_last,
)
from pixrec_core.recommenders.base import ItemLists
from tests.core.recommenders.train_data import make_train_data


def scores(module, train, histories, n_items, **content):
    return module.fit(make_train_data(train, n_items, **content)).scores(ItemLists.from_lists(histories)).tolist()


def test_popularity_counts_occurrences():
    assert scores(popularity, [[0, 1, 1], [1]], [[2], [0]], 3) == [[1, 3, 0], [1, 3, 0]]


def test_recent_popularity_counts_the_newest_interactions(monkeypatch):
    monkeypatch.setattr(recent_popularity, "NEWEST", (0.5,))
    # Of six interactions the newest half starts at time 5; the other one at 5 is in it too.
    train, times = [[0, 0, 1], [0, 2, 2]], [[1, 2, 5], [3, 5, 9]]
    assert scores(recent_popularity, train, [[0]], 3, times=times) == [[0, 1, 2]]


def test_recent_popularity_chooses_how_recent(monkeypatch):
    train, times = [[0, 0, 0, 1]], [[1, 2, 3, 4]]
    for target, share in ((1, 0.25), (0, 1)):
        monkeypatch.setattr(recent_popularity, "NEWEST", (0.25, 1.0))
        chosen = recent_popularity.fit(make_train_data(train, 2, times=times, validation=[([0], target)])).chosen
        assert chosen == {"newest_share": share, "validation_ndcg@10": 1}


def test_repeat_last_goes_from_newest_to_oldest():
    assert scores(repeat_last, [], [[0, 1, 2], [1, 2, 1]], 4) == [
        [np.float32(1 / 3), 0.5, 1, 0],
        [0, 1, 0.5, 0],
    ]


def test_co_occurrence_is_a_shrunk_cosine_weighted_by_recency(monkeypatch):
    monkeypatch.setattr(co_occurrence, "SHRINKAGE", 1.0)
    monkeypatch.setattr(_recency_knn, "RECENCIES", (1.0,))
    train = [[0, 1], [0, 1, 1], [0, 2]]  # item 0: 3 users, 1: 2, 2: 1; together 0-1: 2, 0-2: 1
    near, far = 2 / (sqrt(3 * 2) + 1), 1 / (sqrt(3 * 1) + 1)
    expected = [[0, near, far], [near + far / 2, 0, 0]]
    assert np.allclose(scores(co_occurrence, train, [[0], [2, 1]], 3), expected)


def test_co_occurrence_keeps_the_nearest_neighbours_for_any_block_size(monkeypatch):
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
    monkeypatch.setattr(co_occurrence, "PAIRS_PER_BLOCK", 50)
    assert np.allclose(scores(co_occurrence, lists, [[i] for i in range(12)], 12), dense, atol=1e-6)


def test_markov_chain_prefers_what_followed_both():
    train = [[0, 1, 2], [0, 1, 2], [0, 1, 3], [4, 1, 4], [5, 0]]
    # After (0, 1): 2 twice, 3 once. After 1 alone: 2 twice, 3 and 4 once.
    assert np.allclose(scores(markov_chain, train, [[0, 1]], 6), [[0, 0, 1 + 2 / 3, 1 + 1 / 3, 1 / 4, 0]])


def test_markov_chain_backs_off_to_the_last_item_then_to_nothing():
    train = [[0, 1, 2], [0, 1, 3]]
    assert np.allclose(
        scores(markov_chain, train, [[3, 1], [1], [2]], 4), [[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5], [0] * 4]
    )


def test_markov_chain_does_not_reach_over_the_end_of_a_sequence():
    assert scores(markov_chain, [[0], [1, 2]], [[0], [0, 1]], 3) == [[0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize("module", [co_occurrence, markov_chain])
def test_training_without_pairs_scores_zero(module):
    assert scores(module, [[0]], [[0], [0, 1]], 2) == [[0, 0], [0, 0]]


def test_incidence_does_not_change_the_lists():
    lists = ItemLists.from_lists([[1, 1, 0], [2]])
    assert lists.incidence(3).toarray().tolist() == [[1, 1, 0], [0, 0, 1]]
    assert lists.values.tolist() == [1, 1, 0, 2]
    assert lists.from_newest.tolist() == [2, 1, 0, 0]


def test_ease_solves_its_least_squares_problem(monkeypatch):
    """Steck's objective, minimised per item: a ridge regression on all other items."""
    monkeypatch.setattr(ease, "PENALTIES", (3.0,))
    monkeypatch.setattr(_recency_knn, "RECENCIES", (0.0,))
    random = np.random.default_rng(2)
    train = [random.choice(6, 3, replace=False).tolist() for _ in range(40)]
    bought = np.zeros((40, 6))
    for user, items in enumerate(train):
        bought[user, items] = 1
    expected = np.zeros((6, 6))
    for item in range(6):
        others = [i for i in range(6) if i != item]
        x = bought[:, others]
        expected[others, item] = np.linalg.solve(x.T @ x + 3 * np.eye(5), x.T @ bought[:, item])
    assert np.allclose(scores(ease, train, [[i] for i in range(6)], 6), expected, atol=1e-5)


def test_ease_scores_the_rarest_items_zero(monkeypatch):
    monkeypatch.setattr(ease, "MOST_ITEMS", 2)
    found = scores(ease, [[0, 1, 2], [1, 2], [1, 2]], [[1], [0]], 3)
    assert found[0][0] == 0 < found[0][2]
    assert found[1] == [0, 0, 0]


def test_ease_leaves_out_items_without_pairs_and_needs_none():
    fitted = ease.fit(make_train_data([[0, 2], [1], [2, 0]], 3))
    assert fitted.items.tolist() == [0, 2]
    assert scores(ease, [[0], [1]], [[0, 1]], 2) == [[0, 0]]


@pytest.mark.parametrize("precision", [0, 1e9], ids=["double", "single"])
def test_ease_in_either_precision(precision, monkeypatch):
    monkeypatch.setattr(ease, "SINGLE_PRECISION", precision)
    random = np.random.default_rng(0)
    train = make_train_data([random.choice(30, 6, replace=False).tolist() for _ in range(200)], 30)
    counts = train.train.incidence(30).toarray().astype(np.float64)
    inverse = np.linalg.inv(counts.T @ counts + ease.PENALTIES[0] * np.eye(30))
    expected = np.where(np.eye(30), 0, inverse / -np.diag(inverse))
    np.testing.assert_allclose(ease.fit(train).weights, expected, atol=1e-6)


def test_bm25_by_hand(monkeypatch):
    monkeypatch.setattr(_recency_knn, "RECENCIES", (1.0,))
    texts = ["wool hat", "wool wool coat", "linen coat", "shoe"]
    rows = scores(bm25_text, [], [[0], [2, 0]], 4, texts=texts)
    # Lucene's: idf = ln(1 + (N - df + 0.5) / (df + 0.5)), tf / (tf + k1 (1 - b + b length / mean length)).
    idf = {1: log(1 + 3.5 / 1.5), 2: log(1 + 2.5 / 2.5)}
    mean = 2

    def gain(df, tf, length):
        return idf[df] * tf / (tf + 1.5 * (0.25 + 0.75 * length / mean))

    hat = [gain(2, 1, 2) + gain(1, 1, 2), gain(2, 2, 3), 0, 0]
    linen = [0, gain(2, 1, 3), gain(1, 1, 2) + gain(2, 1, 2), 0]
    assert np.allclose(rows, [hat, np.add(hat, np.divide(linen, 2))])


def test_bm25_equals_the_scores_of_bm25s(monkeypatch):
    monkeypatch.setattr(_recency_knn, "RECENCIES", (0.0,))
    random = np.random.default_rng(5)
    texts = [" ".join(f"w{n}" for n in random.integers(10, 40, 6)) for _ in range(20)]
    index = bm25s.BM25()
    index.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)
    expected = index.get_scores(texts[3].split() + texts[7].split())
    assert np.allclose(scores(bm25_text, [], [[3, 7]], 20, texts=texts), [expected], rtol=1e-5)


def test_image_knn_is_the_cosine_to_the_history(monkeypatch):
    monkeypatch.setattr(_recency_knn, "RECENCIES", (1.0,))
    photos = [[1, 0], [0.6, 0.8], [0, 0], [0, 1]]
    expected = [[1, 0.6, 0, 0], [0.6 + 0.5, 1 + 0.3, 0, 0.8], [0, 0, 0, 0]]
    assert np.allclose(scores(image_knn, [], [[0], [0, 1], [2]], 4, photos=photos), expected)


@pytest.mark.parametrize(("target", "repeats"), [(0, True), (1, False)])
def test_validation_decides_whether_seen_items_are_candidates(target, repeats):
    photos = [[1, 0], [0.6, 0.8], [0, 1]]
    fitted = image_knn.fit(make_train_data([], 3, photos=photos, validation=[([0], target)]))
    assert fitted.chosen["repeats"] is repeats
    assert fitted.chosen["validation_ndcg@10"] == 1
    assert (fitted.scores(ItemLists.from_lists([[0]]))[0, 0] > 0) is np.bool_(repeats)
