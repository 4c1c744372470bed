"""Ranks of validation targets: a model that has collapsed or diverged must never look good."""

import numpy as np
import pytest

from pixrec_core.training.validation import target_ranks

ITEMS = np.array([[1, 0], [0, 1], [0.5, 0.5], [-1, 0]], dtype=np.float32)


def test_ranks_by_hand() -> None:
    users = np.array([[1, 0], [1, 0], [0.2, 1], [0, -1]], dtype=np.float32)  # scores of the first: 1, 0, 0.5, -1
    assert target_ranks(users, ITEMS, np.array([0, 3, 2, 1])).tolist() == [1, 4, 2, 4]


def test_more_users_than_are_scored_at_once() -> None:
    draw = np.random.default_rng(0)
    users, items = (draw.normal(size=(count, 5)).astype(np.float32) for count in (600, 30))
    targets = draw.integers(0, 30, 600)
    ranks = [
        1 + sorted(-(items @ user)).index(-(items @ user)[target]) for user, target in zip(users, targets, strict=True)
    ]
    assert target_ranks(users, items, targets).tolist() == ranks


def test_items_of_equal_score_stand_before_the_target() -> None:
    items = np.array([[1, 0], [0.5, 0], [0.5, 1], [0, 1]], dtype=np.float32)
    assert target_ranks(np.array([[1, 0]], dtype=np.float32), items, np.array([1])).tolist() == [3]


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_collapsed_model_ranks_every_target_last(value: float) -> None:
    users, items = np.full((3, 2), value, np.float32), np.full((7, 2), value, np.float32)
    assert target_ranks(users, items, np.array([0, 3, 6])).tolist() == [7, 7, 7]


def test_a_diverged_model_ranks_every_target_last() -> None:
    nowhere = np.full((2, 2), np.nan, np.float32)
    assert target_ranks(nowhere, ITEMS, np.array([0, 3])).tolist() == [4, 4], "users"
    items = ITEMS.copy()
    items[2] = np.nan
    users = np.array([[1, 0], [0, 1]], dtype=np.float32)
    assert target_ranks(users, items, np.array([2, 2])).tolist() == [4, 4], "the target"
