"""Several datasets in one training: every window once, one dataset to a batch, none before its share."""

from collections import Counter
from typing import NamedTuple

import polars as pl
import pytest

from pixrec_core.models.windows import Windows
from pixrec_core.training.mixture import Mixture, OneDatasetBatches

BATCH = 8
USERS = (100, 41, 3)


class Told(NamedTuple):
    """A collator that says whose it is and what it was given."""

    number: int

    def __call__(self, windows) -> dict:
        return {"collator": self.number, "windows": list(windows)}

    def set_epoch(self, epoch: int) -> None:
        pass


@pytest.fixture
def mixture() -> Mixture:
    """Three datasets whose items are numbered alike."""
    return Mixture(
        [(Windows(pl.Series([[1, 2, 3]] * users), 5, 0), Told(number)) for number, users in enumerate(USERS)]
    )


def batches(mixture: Mixture, epoch: int = 0, seed: int = 0) -> list[list[int]]:
    sampler = OneDatasetBatches(mixture.windows, BATCH, seed)
    sampler.set_epoch(epoch)
    assert len(sampler) == len(list(sampler))
    return list(sampler)


def datasets(mixture: Mixture, epoch: int = 0) -> list[int]:
    """Dataset of each batch, in order; a batch of two would not be collated."""
    return [mixture.collate([mixture[n] for n in batch])["collator"] for batch in batches(mixture, epoch)]


@pytest.mark.parametrize("epoch", [0, 3])
def test_every_window_comes_once_and_a_batch_is_of_one_dataset(mixture: Mixture, epoch: int) -> None:
    drawn = batches(mixture, epoch)
    assert sorted(n for batch in drawn for n in batch) == list(range(len(mixture))) == list(range(sum(USERS)))
    assert Counter(datasets(mixture, epoch)) == {0: 13, 1: 6, 2: 1}, "100, 41 and 3 windows in batches of 8"


def test_datasets_take_turns(mixture: Mixture) -> None:
    order = datasets(mixture)
    assert order != sorted(order)


def test_seed_and_epoch_fix_the_order(mixture: Mixture) -> None:
    assert batches(mixture, 3, 5) == batches(mixture, 3, 5)
    assert batches(mixture, 3, 5) != batches(mixture, 4, 5)
    assert batches(mixture, 3, 5) != batches(mixture, 3, 6)


def test_an_epoch_is_as_many_steps_as_any_other() -> None:
    mixture = Mixture(
        [
            (Windows(pl.Series([list(range(21))] * 30), 10, 0), Told(0)),
            (Windows(pl.Series([list(range(9))] * 9), 4, 0), Told(1)),
        ]
    )
    steps = set()
    for epoch in range(20):
        mixture.set_epoch(epoch)
        steps.add(len(batches(mixture, epoch)))
    assert len(steps) == 1


def test_an_item_of_one_dataset_is_never_read_as_one_of_another(mixture: Mixture) -> None:
    with pytest.raises(AssertionError, match=r"a batch of datasets \[0, 1\]"):
        mixture.collate([mixture[0], mixture[USERS[0]]])
    with pytest.raises(IndexError):
        mixture[sum(USERS)]
