"""The plain data that baselines learn from and score: item indices of users, in order."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class ItemLists:
    """Lists of item indices, one a user, laid end to end.

    Attributes:
        values: all lists in a row.
        offsets: (users + 1,); user u's list is `values[offsets[u]:offsets[u + 1]]`, oldest first.
    """

    values: NDArray[np.int64]
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, values: NDArray[np.integer], lengths: NDArray[np.integer]) -> "ItemLists":
        """From the lists laid end to end and the length of each."""
        return cls(values.astype(np.int64), np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))

    @classmethod
    def from_lists(cls, lists: Sequence[Sequence[int]]) -> "ItemLists":
        """From plain lists."""
        flat = [item for items in lists for item in items]
        return cls.of(np.array(flat, np.int64), np.array([len(items) for items in lists], np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def rows(self) -> NDArray[np.int64]:
        """The user of each value."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @property
    def from_newest(self) -> NDArray[np.int64]:
        """How many items of the same user follow each value; 0 is the newest."""
        return self.offsets[1:][self.rows] - 1 - np.arange(len(self.values))

    def where(self, kept: NDArray[np.bool_]) -> "ItemLists":
        """The same lists of the values that are `kept`, (values,); a list may come out empty."""
        return ItemLists.of(self.values[kept], np.bincount(self.rows[kept], minlength=len(self)))

    def of_users(self, drawn: NDArray[np.bool_]) -> "ItemLists":
        """The lists of the users that are `drawn`, (users,)."""
        return ItemLists.of(self.values[drawn[self.rows]], np.diff(self.offsets)[drawn])

    def batches(self, size: int) -> Iterator[tuple[slice, "ItemLists"]]:
        """The users in turns of at most `size`, with the slice that they are."""
        for start in range(0, len(self), size):
            offsets = self.offsets[start : start + size + 1]
            yield slice(start, start + size), ItemLists(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])

    def matrix(self, n_items: int, weights: NDArray[np.float32]) -> sparse.csr_array:
        """(users, n_items) with one weight a value; an item that occurs twice gets the sum."""
        # A copy: `sum_duplicates` works in place, and would work in the lists themselves.
        matrix = sparse.csr_array((weights, self.values, self.offsets), shape=(len(self), n_items), copy=True)
        matrix.sum_duplicates()
        return matrix

    def incidence(self, n_items: int) -> sparse.csr_array:
        """(users, n_items) with 1 where the user has the item, however often."""
        matrix = self.matrix(n_items, np.ones(len(self.values), np.float32))
        matrix.data[:] = 1
        return matrix


#: Scores a batch of histories: (B users) -> (B, n_items).
Scorer = Callable[[ItemLists], Scores]
