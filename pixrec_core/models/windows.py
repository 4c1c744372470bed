"""Training windows: user sequences cut so that every item but the first is a target once per epoch."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch.utils.data import Dataset


class TrainingWindow(NamedTuple):
    """A consecutive part of one user's training sequence.

    Attributes:
        items: item numbers, oldest first; all but the first are targets.
        later: items that the user takes after the window, within the training split. They are correct answers too,
            so they are never negatives.
        times: times of the items, in any unit; empty if unknown.
    """

    items: Sequence[int]
    later: Sequence[int] = ()
    times: Sequence[int] = ()


class TrainingWindows(Dataset[TrainingWindow]):
    """Windows of at most `length` + 1 items: up to `length` items of history before the last target.

    Consecutive windows of a user share one item: the last target of the first is the oldest history item of the
    second. The cuts are drawn again in each epoch, so over the epochs a target follows histories of every length.

    Args:
        sequences: (users,) lists of item numbers, oldest first.
        length: maximum number of items in a history.
        seed: seed of the cuts and of the order of items with equal timestamps.
        timestamps: (users,) lists of times of the items, in any unit that increases with time; None if not known.
        shuffle_ties: shuffle items with equal timestamps in each epoch: the true order of a basket or an import is
            unknown. Needs `timestamps`.
    """

    def __init__(
        self,
        sequences: pl.Series,
        length: int,
        seed: int,
        timestamps: pl.Series | None = None,
        *,
        shuffle_ties: bool = True,
    ) -> None:
        lengths = sequences.list.len()
        has_target = lengths > 1
        self._lengths = lengths.filter(has_target).to_numpy().astype(np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self._lengths)])
        self._given_items = sequences.filter(has_target).explode().to_numpy()
        self._timestamps: NDArray[np.int64] | None = None
        if timestamps is not None:
            self._timestamps = timestamps.filter(has_target).explode().to_numpy()
        self._shuffle_ties = shuffle_ties
        self._length = length
        self._seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the cuts of an epoch. Cuts depend on seed and epoch only; all epochs have the same number of windows."""
        generator = np.random.default_rng((self._seed, epoch))
        cuts = (
            (user, start, end)
            for user, num_items in enumerate(self._lengths)
            for start, end in self._draw_cuts(int(num_items), generator)
        )
        self._cuts: NDArray[np.int64] = np.fromiter(cuts, dtype=np.dtype((np.int64, 3)))
        self._items = self._given_items
        if self._shuffle_ties and self._timestamps is not None:
            users = np.repeat(np.arange(len(self._lengths)), self._lengths)
            self._items = self._given_items[np.lexsort((generator.random(len(users)), self._timestamps, users))]

    def _draw_cuts(self, num_items: int, generator: np.random.Generator) -> list[tuple[int, int]]:
        """Index ranges (start, end) of the windows of one sequence; the first and the last window may be short.

        With the fewest windows, the first one has `shortest` to `length` targets; a sequence that fills them has no
        choice of cuts. With one window more, the first one has 1 to `shortest` - 1 targets. The alternative with
        more choices is taken in every epoch, so the number of windows and of training steps per epoch is constant.
        (Full windows of two targets have one choice either way.)
        """
        targets, length = num_items - 1, self._length
        fewest = -(-targets // length)
        shortest = targets - (fewest - 1) * length
        low, high = shortest, min(length, targets)
        if fewest > 1 and shortest - 1 > length - shortest + 1:
            low, high = 1, shortest - 1
        first = int(generator.integers(low, high + 1))
        ends = [*range(1 + first, num_items, length), num_items]
        return list(zip([0, *(end - 1 for end in ends[:-1])], ends, strict=True))

    def __len__(self) -> int:
        return len(self._cuts)

    def __getitem__(self, index: int) -> TrainingWindow:
        user, start, end = self._cuts[index]
        sequence = self._items[self._starts[user] : self._starts[user + 1]].tolist()
        times = () if self._timestamps is None else self._timestamps[self._starts[user] :][start:end].tolist()
        return TrainingWindow(sequence[start:end], sequence[end:], times)

    @property
    def lengths(self) -> list[int]:
        """Number of items of each window."""
        lengths: list[int] = (self._cuts[:, 2] - self._cuts[:, 1]).tolist()
        return lengths

    @property
    def users(self) -> int:
        """Number of sequences with at least one target."""
        return len(self._lengths)

    @property
    def targets(self) -> int:
        """Number of (history, target) pairs per epoch."""
        return int((self._lengths - 1).sum())

    @property
    def max_targets(self) -> int:
        """Highest number of targets of a window, in any epoch."""
        return int(min(self._length, self._lengths.max() - 1))
