"""Negatives: which items a batch is set beside, and what each of them counts for."""

import math

import numpy as np
import pytest

from pixrec_core.models.negatives import Negatives

COUNTS = np.array([3, 0, 1, 2, 5, 0, 1, 4])


def test_all_items_of_training_but_those_of_the_batch() -> None:
    numbers, offsets = Negatives(COUNTS, 100, seed=0).sample(np.array([0, 4]))
    assert numbers[:2].tolist() == [0, 4]
    assert sorted(numbers[2:].tolist()) == [2, 3, 6, 7], "items 1 and 5 never occur in training"
    assert offsets.tolist() == [0] * 6


def test_a_drawn_item_stands_for_all_that_it_was_drawn_from() -> None:
    negatives, drawn = Negatives(COUNTS, 2, seed=0), set()
    for _ in range(50):
        numbers, offsets = negatives.sample(np.array([0]))
        assert len(set(numbers.tolist())) == 3
        assert offsets.tolist() == pytest.approx([0, math.log(5 / 2), math.log(5 / 2)])
        drawn |= set(numbers[1:].tolist())
    assert drawn == {2, 3, 4, 6, 7}


def test_without_a_sample_the_batch_stands_alone() -> None:
    numbers, offsets = Negatives(COUNTS, 0, seed=0).sample(np.array([0, 2]))
    assert (numbers.tolist(), offsets.tolist()) == ([0, 2], [0, 0])


def test_popularity_correction_is_of_the_batch_alone() -> None:
    _, offsets = Negatives(COUNTS, 1, seed=0, log_q_correction=True).sample(np.array([0, 2, 4]))
    assert offsets.tolist() == pytest.approx([*(-math.log(count / 9) for count in (3, 1, 5)), math.log(3)])


def test_seed_and_epoch_decide_what_is_drawn() -> None:
    def draws(seed: int, epoch: int) -> list[list[int]]:
        negatives = Negatives(np.ones(1000, dtype=int), 20, seed)
        negatives.sample(np.array([1]))
        negatives.set_epoch(epoch)
        return [negatives.sample(np.array([1]))[0].tolist() for _ in range(2)]

    assert draws(1, 3) == draws(1, 3)
    assert len({str(draw) for pair in (draws(1, 3), draws(2, 3), draws(1, 4)) for draw in pair}) == 6
