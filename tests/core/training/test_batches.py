"""Batches of several datasets: every window once per epoch, one dataset per batch, datasets mixed in proportion."""

import random
from collections import Counter
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest

from pixrec_core.models.windows import TrainingWindows
from pixrec_core.training.batches import JointWindows, OneDatasetBatchSampler, TargetsBatchSampler

BATCH = 8
USERS = (100, 41, 3)


class RecordingCollator(NamedTuple):
    """Returns its number and the windows that it was given."""

    number: int

    def __call__(self, windows) -> dict:
        return {"collator": self.number, "windows": list(windows)}

    def set_epoch(self, epoch: int) -> None:
        pass


@pytest.fixture
def joint() -> JointWindows:
    """Three datasets that use the same item numbers."""
    return JointWindows(
        [
            (TrainingWindows(pl.Series([[1, 2, 3]] * users), 5, 0), RecordingCollator(number))
            for number, users in enumerate(USERS)
        ]
    )


def batches(joint: JointWindows, epoch: int = 0, seed: int = 0) -> list[list[int]]:
    sampler = OneDatasetBatchSampler(joint.windows, BATCH, seed)
    sampler.set_epoch(epoch)
    assert len(sampler) == len(list(sampler))
    return list(sampler)


def datasets(joint: JointWindows, epoch: int = 0) -> list[int]:
    """Dataset of each batch, in order; a batch of two datasets would raise."""
    return [joint.collate([joint[n] for n in batch])["collator"] for batch in batches(joint, epoch)]


@pytest.mark.parametrize("epoch", [0, 3])
def test_each_epoch_has_every_window_once_and_each_batch_one_dataset(joint: JointWindows, epoch: int) -> None:
    drawn = batches(joint, epoch)
    assert sorted(n for batch in drawn for n in batch) == list(range(len(joint))) == list(range(sum(USERS)))
    assert Counter(datasets(joint, epoch)) == {0: 13, 1: 6, 2: 1}, "100, 41 and 3 windows in batches of 8"


def test_batches_of_different_datasets_are_shuffled(joint: JointWindows) -> None:
    order = datasets(joint)
    assert order != sorted(order)


def test_seed_and_epoch_determine_the_order(joint: JointWindows) -> None:
    assert batches(joint, 3, 5) == batches(joint, 3, 5)
    assert batches(joint, 3, 5) != batches(joint, 4, 5)
    assert batches(joint, 3, 5) != batches(joint, 3, 6)


def test_every_epoch_has_the_same_number_of_steps() -> None:
    joint = JointWindows(
        [
            (TrainingWindows(pl.Series([list(range(21))] * 30), 10, 0), RecordingCollator(0)),
            (TrainingWindows(pl.Series([list(range(9))] * 9), 4, 0), RecordingCollator(1)),
        ]
    )
    steps = set()
    for epoch in range(20):
        joint.set_epoch(epoch)
        steps.add(len(batches(joint, epoch)))
    assert len(steps) == 1


def test_a_batch_that_mixes_datasets_is_refused(joint: JointWindows) -> None:
    with pytest.raises(AssertionError, match=r"a batch mixes datasets \[0, 1\]"):
        joint.collate([joint[0], joint[USERS[0]]])
    with pytest.raises(IndexError):
        joint[sum(USERS)]


@pytest.fixture(scope="module")
def windows() -> TrainingWindows:
    """500 users of 2 to 21 items, each in one window."""
    draw = random.Random(0)
    return TrainingWindows(pl.Series([list(range(draw.randint(2, 21))) for _ in range(500)]), length=20, seed=0)


def padding(windows: TrainingWindows, batches: list[list[int]]) -> float:
    """Share of padding in batches of these windows."""
    lengths = [np.array(windows.lengths)[batch] for batch in batches]
    return 1 - sum(each.sum() for each in lengths) / sum(len(each) * each.max() for each in lengths)


def test_batches_have_little_padding(windows: TrainingWindows) -> None:
    shuffled = list(range(len(windows)))
    random.Random(1).shuffle(shuffled)
    assert padding(windows, [shuffled[n : n + BATCH] for n in range(0, len(shuffled), BATCH)]) > 0.3
    assert padding(windows, list(OneDatasetBatchSampler([windows], BATCH, 0))) < 0.1


def test_windows_of_the_current_epoch_are_batched() -> None:
    windows = TrainingWindows(pl.Series([list(range(8))] * 200), length=5, seed=0)
    sampler = OneDatasetBatchSampler([windows], BATCH, 0)
    for epoch in (0, 1):
        windows.set_epoch(epoch)
        sampler.set_epoch(epoch)
        assert padding(windows, list(sampler)) < 0.1


@pytest.mark.parametrize("batch_size", [4, 64, 1000, 10**6])
def test_batches_by_targets_hold_each_window_once_and_about_as_many_targets(
    windows: TrainingWindows, batch_size: int
) -> None:
    sampler = TargetsBatchSampler([windows], batch_size, seed=0)
    first = list(sampler)
    assert sorted(n for batch in first for n in batch) == list(range(len(windows)))
    assert len(first) == len(sampler) == min(max(-(-windows.targets // batch_size), 32), windows.targets // 20)
    targets = [sum(windows.lengths[n] - 1 for n in batch) for batch in first]
    assert max(targets) - min(targets) < 2 * 20  # windows have at most 20 targets
    sampler.set_epoch(1)
    assert len(list(sampler)) == len(first)
    assert list(sampler) != first


def test_an_epoch_of_many_batches_draws_some(windows: TrainingWindows, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = TargetsBatchSampler([windows], 64, seed=0)
    every = list(sampler)
    monkeypatch.setattr("pixrec_core.training.batches.MAX_STEPS", 10)
    assert list(sampler) == every[:10]
    assert len(sampler) == 10
    sampler.set_epoch(1)
    assert len({tuple(batch) for batch in sampler} & set(map(tuple, every[:10]))) < 10


def test_batches_by_targets_have_little_padding() -> None:
    draw = random.Random(0)
    users = pl.Series([list(range(draw.choice([2, 2, 3, 40]))) for _ in range(2000)])
    many = TrainingWindows(users, length=50, seed=0)
    batches = list(TargetsBatchSampler([many], 512, seed=0))
    assert np.median([padding(many, [batch]) for batch in batches]) < 0.1  # one batch has long and short windows


def test_a_single_window_is_a_batch() -> None:
    windows = TrainingWindows(pl.Series([[1, 2]]), 5, 0)
    assert list(TargetsBatchSampler([windows], 1024, seed=0)) == [[0]]
