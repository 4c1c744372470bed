"""Lists of item indices, one per user: the plain data that methods learn from and score."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class ItemLists:
    """Concatenated lists of item indices, one list per user.

    Attributes:
        values: the items of all lists.
        offsets: (users + 1,); user u's list is `values[offsets[u]:offsets[u + 1]]`, oldest item first.
        times: (values,) milliseconds since 1970; None if they are unknown or the method does not need them.
        same_visit: (users,) whether the request comes during the visit of the newest item, as on the page of a basket;
            None means a later visit, for all users.
    """

    values: NDArray[np.int64]
    offsets: NDArray[np.int64]
    times: NDArray[np.int64] | None = None
    same_visit: NDArray[np.bool_] | None = None

    @classmethod
    def of(
        cls, values: NDArray[np.integer], lengths: NDArray[np.integer], times: NDArray[np.int64] | None = None
    ) -> "ItemLists":
        """Build from concatenated lists and the length of each."""
        return cls(values.astype(np.int64), np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), times)

    @classmethod
    def from_lists(cls, lists: Sequence[Sequence[int]]) -> "ItemLists":
        """Build from Python lists."""
        flat = [item for items in lists for item in items]
        return cls.of(np.array(flat, np.int64), np.array([len(items) for items in lists], np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def rows(self) -> NDArray[np.int64]:
        """(values,) the user of each value."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @property
    def from_newest(self) -> NDArray[np.int64]:
        """(values,) number of items of the same user after each value; 0 is the newest item."""
        return self.offsets[1:][self.rows] - 1 - np.arange(len(self.values))

    def filter(self, mask: NDArray[np.bool_]) -> "ItemLists":
        """Keep the values where `mask` (values,) is true; a list may become empty."""
        times = None if self.times is None else self.times[mask]
        lists = ItemLists.of(self.values[mask], np.bincount(self.rows[mask], minlength=len(self)), times)
        return replace(lists, same_visit=self.same_visit)

    def batches(self, size: int) -> Iterator[tuple[slice, "ItemLists"]]:
        """Yield at most `size` users at a time, with their slice of all users."""
        for start in range(0, len(self), size):
            offsets = self.offsets[start : start + size + 1]
            values = slice(offsets[0], offsets[-1])
            times = None if self.times is None else self.times[values]
            same_visit = None if self.same_visit is None else self.same_visit[start : start + size]
            yield slice(start, start + size), ItemLists(self.values[values], offsets - offsets[0], times, same_visit)

    def matrix(self, n_items: int, weights: NDArray[np.float32]) -> sparse.csr_array:
        """Return (users, n_items) with the weight (values,) of each value; weights of a repeated item add up."""
        # copy=True, because `sum_duplicates` works in place and would change `values`.
        matrix = sparse.csr_array((weights, self.values, self.offsets), shape=(len(self), n_items), copy=True)
        matrix.sum_duplicates()
        return matrix

    def incidence(self, n_items: int) -> sparse.csr_array:
        """Return (users, n_items) with 1 where the user has the item, once or more."""
        matrix = self.matrix(n_items, np.ones(len(self.values), np.float32))
        matrix.data[:] = 1
        return matrix
