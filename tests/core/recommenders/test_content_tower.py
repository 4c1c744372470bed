"""The content tower: its text features and examples by hand, and what it learns from pairs of items."""

import numpy as np
import pytest

from pixrec_core.recommenders import content_tower
from pixrec_core.recommenders.base import ItemLists
from tests.core.recommenders.train_data import make_train_data

COLOURS, KINDS, MATERIALS = ("red", "blue", "green", "black"), ("shoe", "sock", "scarf", "tie"), ("wool", "silk")
TEXTS = [f"{colour} {kind} {material}" for colour in COLOURS for kind in KINDS for material in MATERIALS]


def examples(lists, times, *, in_order):
    """{target: [(item, position)]} of the only batch."""
    lists = ItemLists.from_lists(lists)
    (batch,) = content_tower._batches(lists, np.array(times), np.random.default_rng(0), in_order=in_order)
    found = {int(target): [] for target in batch.targets}
    for row, item, position in zip(batch.rows, batch.texts, batch.positions, strict=True):
        found[int(batch.targets[row])].append((int(item), int(position)))
    return found


def test_examples_in_order():
    found = examples([[1, 2, 3], [4], [5, 6]], [1, 2, 3, 1, 1, 2], in_order=True)
    assert found == {2: [(1, 0)], 3: [(1, 1), (2, 0)], 6: [(5, 0)]}


def test_examples_from_the_rest_of_the_sequence():
    found = examples([[1, 2, 3], [4], [5, 6]], [1, 2, 3, 1, 1, 2], in_order=False)
    assert found == {1: [(2, 1), (3, 0)], 2: [(1, 1), (3, 0)], 3: [(1, 1), (2, 0)], 5: [(6, 0)], 6: [(5, 0)]}


@pytest.mark.parametrize("in_order", [True, False])
def test_a_history_is_cut_to_its_newest_items(in_order, monkeypatch):
    monkeypatch.setattr(content_tower, "MAX_HISTORY", 2)
    found = examples([[1, 2, 3, 4]], [1, 2, 3, 4], in_order=in_order)
    assert found[4] == [(2, 1), (3, 0)]
    assert all(position < 2 for history in found.values() for _, position in history)


def test_items_of_one_time_get_a_random_order():
    lists, random, targets = ItemLists.from_lists([[1, 2, 3]]), np.random.default_rng(0), set()
    for _ in range(20):
        (batch,) = content_tower._batches(lists, np.array([1, 1, 2]), random, in_order=True)
        targets.add(frozenset(batch.targets.tolist()))
    assert targets == {frozenset({1, 3}), frozenset({2, 3})}


def test_it_learns_what_texts_follow_each_other_and_ranks_items_without_sales():
    """After a shoe comes a sock of the same colour and material; the last colour is never sold."""
    row = {text: row for row, text in enumerate(TEXTS)}
    sold = [text for text in TEXTS if "shoe" in text and "black" not in text]
    pairs = [[row[text], row[text.replace("shoe", "sock")]] for text in sold]
    train = make_train_data(
        pairs * 20, len(TEXTS), validation=[([first], second) for first, second in pairs], texts=TEXTS
    )
    model = content_tower.fit(train)
    scores = model.scores(ItemLists.from_lists([[first] for first, _ in pairs] + [[]]))
    nearest_two = np.argsort(-scores[:-1], axis=1)[:, :2].tolist()
    assert all(second in items for items, (_, second) in zip(nearest_two, pairs, strict=True))
    assert not scores[-1].any(), "an empty history knows nothing"
    cold = model.scores(ItemLists.from_lists([[row["black shoe wool"]]]))[0]
    assert cold[row["black sock wool"]] > np.median(cold)
    assert set(model.chosen) == {"in_order", "validation_ndcg@10"}


def test_a_large_catalogue_is_sampled(monkeypatch):
    monkeypatch.setattr(content_tower, "FULL_SOFTMAX", 2)
    monkeypatch.setattr(content_tower, "NEGATIVES", 3)
    train = make_train_data([[0, 1], [2, 3]] * 10, 4, validation=[([0], 1)], texts=["a b", "a c", "d b", "d c"])
    scores = content_tower.fit(train).scores(ItemLists.from_lists([[0]]))
    assert np.isfinite(scores).all()
