"""The sampler: all windows once per epoch, in a reproducible order, with similar lengths next to each other."""

import random

import numpy as np
import polars as pl
import pytest

from pixrec_core.models.windows import TrainingWindows
from pixrec_core.training.batches import LengthGroupedSampler

BATCH = 8


@pytest.fixture(scope="module")
def windows() -> TrainingWindows:
    """500 users of 2 to 21 items, each in one window."""
    draw = random.Random(0)
    return TrainingWindows(pl.Series([list(range(draw.randint(2, 21))) for _ in range(500)]), length=20, seed=0)


def order(windows: TrainingWindows, epoch: int = 0, seed: int = 0) -> list[int]:
    sampler = LengthGroupedSampler(windows, BATCH, seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def padding(windows: TrainingWindows, numbers: list[int]) -> float:
    """Share of padding in batches of these windows."""
    lengths = np.array(windows.lengths)[numbers]
    padded = sum(len(batch) * batch.max() for batch in np.split(lengths, range(BATCH, len(lengths), BATCH)))
    return 1 - lengths.sum() / padded


@pytest.mark.parametrize("epoch", [0, 1, 17])
def test_each_epoch_has_every_window_once(windows: TrainingWindows, epoch: int) -> None:
    assert sorted(order(windows, epoch)) == list(range(len(windows)))
    assert len(LengthGroupedSampler(windows, BATCH, 0)) == len(windows)


def test_seed_and_epoch_determine_the_order(windows: TrainingWindows) -> None:
    assert order(windows, epoch=3, seed=5) == order(windows, epoch=3, seed=5)
    assert order(windows, epoch=3, seed=5) != order(windows, epoch=4, seed=5)
    assert order(windows, epoch=3, seed=5) != order(windows, epoch=3, seed=6)


def test_batches_have_little_padding(windows: TrainingWindows) -> None:
    at_random = list(range(len(windows)))
    random.Random(1).shuffle(at_random)
    assert padding(windows, at_random) > 0.3
    assert padding(windows, order(windows)) < 0.1


@pytest.mark.parametrize("users", [1, BATCH - 1, BATCH + 1])
def test_fewer_windows_than_a_group_are_sampled(users: int) -> None:
    assert sorted(order(TrainingWindows(pl.Series([[1, 2, 3]] * users), 5, 0))) == list(range(users))


def test_windows_of_the_current_epoch_are_sampled() -> None:
    windows = TrainingWindows(pl.Series([list(range(8))] * 200), length=5, seed=0)
    sampler = LengthGroupedSampler(windows, BATCH, 0)
    for epoch in (0, 1):
        windows.set_epoch(epoch)
        sampler.set_epoch(epoch)
        assert padding(windows, list(sampler)) < 0.1
