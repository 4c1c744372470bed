"""The two sides of a ranker: what it may use, and what it gives back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pixrec_core.models.collate import Collator, to_device
from pixrec_core.models.continuation import Continuation
from pixrec_core.models.dual_tower import DualTower
from pixrec_core.models.item_inputs import Ids

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Catalogue:
    """A trained tower and the items that it ranks.

    Attributes:
        items: (N,) ids.
        model: the dual tower.
        collator: of its inputs, with photos.
        vectors: (N, D) of the items.
        texts: (N,) of the items, uncut; what BM25 looks in.
    """

    items: Sequence[str]
    model: DualTower
    collator: Collator
    vectors: Vectors
    texts: Sequence[str]

    def token_texts(self) -> list[Ids]:
        """(N,) token ids of each item's text, as far as the towers read it."""
        return [block.ids[: block.text_length] for block in self.collator.inputs.blocks]

    def read(self, histories: Sequence[Sequence[int]]) -> Continuation:
        """Read histories up to where the next item's text would stand."""
        return Continuation(self.model, to_device(self.collator.openings(histories), self.model.device))


@dataclass(frozen=True)
class UserBatch:
    """Some users, and what the dense tower says of them.

    Attributes:
        histories: (B,) items in a window, oldest first.
        vectors: (B, D).
        nearest: (B, k) items, nearest first, as the index found them; -1 past the end of a list.
        cosines: (B, k) theirs.
    """

    histories: Sequence[Sequence[int]]
    vectors: Vectors
    nearest: NDArray[np.int64]
    cosines: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.histories)

    def take(self, rows: Sequence[int]) -> "UserBatch":
        """Some of them."""
        histories = [self.histories[row] for row in rows]
        return UserBatch(histories, self.vectors[rows], self.nearest[rows], self.cosines[rows])


class RankedItems(NamedTuple):
    """One user's items, best first and each once, with scores that never rise."""

    items: NDArray[np.int64]
    scores: NDArray[np.float32]


Ranker = Callable[[UserBatch], list[RankedItems]]
