"""Training windows: a user's sequence cut so that every item but the first is a target once an epoch."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch.utils.data import Dataset


class TrainingWindow(NamedTuple):
    """A piece of one user's training sequence.

    Attributes:
        items: item numbers, oldest first; all but the first are targets.
        later: what the user takes after them, still within training: right answers too, so never negatives.
    """

    items: Sequence[int]
    later: Sequence[int] = ()


class TrainingWindows(Dataset[TrainingWindow]):
    """TrainingWindows of at most `length` + 1 items: up to `length` of history before the last target.

    Neighbouring windows of one user share one item, the last target of the one and the first of the
    history of the next. Where the cuts fall is drawn anew each epoch, so that over epochs a target
    is seen after histories of every length.

    Args:
        sequences: lists of item numbers, a user's oldest first.
        length: most items of a history.
        seed: of the cuts and of the order within an instant.
        moments: when each item was taken, in any unit that grows with time. Items of one instant (a
            basket, an import) came in no order that is known, so they get a new one each epoch.
            None keeps the order given.
    """

    def __init__(
        self,
        sequences: pl.Series,
        length: int,
        seed: int,
        moments: pl.Series | None = None,
    ) -> None:
        lengths = sequences.list.len()
        kept = lengths > 1
        self._lengths = lengths.filter(kept).to_numpy().astype(np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self._lengths)])
        self._given = sequences.filter(kept).explode().to_numpy()
        self._moments = None if moments is None else moments.filter(kept).explode().to_numpy()
        self._length = length
        self._seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the cuts of an epoch; the same ones whenever it is asked for, and as many in every epoch."""
        generator = np.random.default_rng((self._seed, epoch))
        cuts = (
            (number, start, end)
            for number, length in enumerate(self._lengths)
            for start, end in self._cut(int(length), generator)
        )
        self._cuts: NDArray[np.int64] = np.fromiter(cuts, dtype=np.dtype((np.int64, 3)))
        self._items = self._given
        if self._moments is not None:
            users = np.repeat(np.arange(len(self._lengths)), self._lengths)
            self._items = self._given[np.lexsort((generator.random(len(users)), self._moments, users))]

    def _cut(self, items: int, generator: np.random.Generator) -> list[tuple[int, int]]:
        """(first, past the last) of a sequence's windows; the first and the last one may be short.

        The fewest windows leave the first one `shortest` to `length` targets, and where the targets fill
        them there is no choice at all. One window more leaves it 1 to `shortest` - 1. Whichever leaves more
        is taken, in every epoch, so that an epoch's number of windows, and of steps, never changes. (Full
        windows of two targets have one choice either way.)
        """
        targets, length = items - 1, self._length
        windows = -(-targets // length)
        shortest = targets - (windows - 1) * length
        low, high = shortest, min(length, targets)
        if windows > 1 and shortest - 1 > length - shortest + 1:
            low, high = 1, shortest - 1
        first = int(generator.integers(low, high + 1))
        ends = [*range(1 + first, items, length), items]
        return list(zip([0, *(end - 1 for end in ends[:-1])], ends, strict=True))

    def __len__(self) -> int:
        return len(self._cuts)

    def __getitem__(self, index: int) -> TrainingWindow:
        number, start, end = self._cuts[index]
        sequence = self._items[self._starts[number] : self._starts[number + 1]].tolist()
        return TrainingWindow(sequence[start:end], sequence[end:])

    @property
    def lengths(self) -> list[int]:
        """Items of each window."""
        lengths: list[int] = (self._cuts[:, 2] - self._cuts[:, 1]).tolist()
        return lengths

    @property
    def users(self) -> int:
        """Sequences that have a target."""
        return len(self._lengths)

    @property
    def targets(self) -> int:
        """Pairs of history and target in an epoch."""
        return int((self._lengths - 1).sum())
