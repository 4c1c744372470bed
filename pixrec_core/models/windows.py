"""Training windows: a user's sequence cut so that every item but the first is a target once an epoch."""

from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

Window = Sequence[int]


class Windows(Dataset[Window]):
    """Windows of at most `length` + 1 items: up to `length` of history before the last target.

    Neighbouring windows of one user share one item, the last target of the one and the first of the
    history of the next. Where the cuts fall is drawn anew each epoch, so that over epochs a target
    is seen after histories of every length.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], length: int, seed: int) -> None:
        self._sequences = [s for s in sequences if len(s) > 1]
        self._length = length
        self._seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the cuts of an epoch; the same ones whenever it is asked for, and as many in every epoch."""
        generator = np.random.default_rng((self._seed, epoch))
        self._cuts = [
            (number, start, end)
            for number, sequence in enumerate(self._sequences)
            for start, end in self._cut(len(sequence), generator)
        ]

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

    def __getitem__(self, index: int) -> Window:
        number, start, end = self._cuts[index]
        return self._sequences[number][start:end]

    @property
    def lengths(self) -> list[int]:
        """Items of each window."""
        return [end - start for _, start, end in self._cuts]

    @property
    def users(self) -> int:
        """Sequences that have a target."""
        return len(self._sequences)

    @property
    def targets(self) -> int:
        """Pairs of history and target in an epoch."""
        return sum(len(s) - 1 for s in self._sequences)
