"""Negatives: sampled items, and the logit offset of each key."""

import math

import numpy as np
import pytest

from pixrec_core.models.negatives import Negatives

COUNTS = np.array([3, 0, 1, 2, 5, 0, 1, 4])


def test_samples_are_training_items_outside_the_batch() -> None:
    numbers, offsets = Negatives(COUNTS, 100, seed=0).sample(np.array([0, 4]))
    assert numbers[:2].tolist() == [0, 4]
    assert sorted(numbers[2:].tolist()) == [2, 3, 6, 7], "items 1 and 5 never occur in training"
    assert offsets.tolist() == [0] * 6


def test_the_offset_of_a_sampled_item_is_the_log_of_its_expected_count() -> None:
    negatives, sampled = Negatives(COUNTS, 2, seed=0), set()
    for _ in range(50):
        numbers, offsets = negatives.sample(np.array([0]))
        assert len(set(numbers.tolist())) == 3
        assert offsets.tolist() == pytest.approx([0, math.log(5 / 2), math.log(5 / 2)])
        sampled |= set(numbers[1:].tolist())
    assert sampled == {2, 3, 4, 6, 7}


def test_without_samples_the_keys_are_the_batch() -> None:
    numbers, offsets = Negatives(COUNTS, 0, seed=0).sample(np.array([0, 2]))
    assert (numbers.tolist(), offsets.tolist()) == ([0, 2], [0, 0])


def test_the_log_q_correction_applies_to_batch_items_only() -> None:
    _, offsets = Negatives(COUNTS, 1, seed=0, log_q_correction=True).sample(np.array([0, 2, 4]))
    assert offsets.tolist() == pytest.approx([*(-math.log(count / 9) for count in (3, 1, 5)), math.log(3)])


def test_samples_depend_on_seed_and_epoch() -> None:
    def samples(seed: int, epoch: int) -> list[list[int]]:
        negatives = Negatives(np.ones(1000, dtype=int), 20, seed)
        negatives.sample(np.array([1]))
        negatives.set_epoch(epoch)
        return [negatives.sample(np.array([1]))[0].tolist() for _ in range(2)]

    assert samples(1, 3) == samples(1, 3)
    assert len({str(sample) for pair in (samples(1, 3), samples(2, 3), samples(1, 4)) for sample in pair}) == 6
