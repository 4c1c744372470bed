"""Generative rankers: the language model writes or scores the next item's text. One module per ranker.

A ranker module has one function:

`create_ranker(catalogue: Catalogue, settings: GenerativeSettings) -> Ranker`
    prepares what all users share. The ranker takes a batch of users and returns a list for each: the items that it can
    order, best first, each once, seen items included. The dense order completes the lists. The same batches give the
    same lists.

The module's name is the ranker's name in settings, files and the report. The likelihood of an item is the mean
log-probability of the tokens of its text after the history, which the loss L_NIG trains; tokens that the towers cut off
do not count. The end of a text is no label in training, so its probability means nothing. An item without a text has no
likelihood.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from accelerate.utils import send_to_device
from numpy.typing import NDArray

from pixrec_core.models.collate import Collator
from pixrec_core.models.continuation import Continuation
from pixrec_core.models.dual_tower import DualTower
from pixrec_core.models.item_inputs import Ids

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Catalogue:
    """A trained dual tower and the items to rank.

    Attributes:
        items: (N,) ids.
        model: the dual tower.
        collator: makes the inputs of the model.
        vectors: (N, D) item vectors.
        texts: (N,) full item texts, for BM25.
    """

    items: Sequence[str]
    model: DualTower
    collator: Collator
    vectors: Vectors
    texts: Sequence[str]

    def token_texts(self) -> list[Ids]:
        """(N,) token ids of each item's text, cut as for the towers."""
        return [block.ids[: block.text_length] for block in self.collator.inputs]

    def read(self, histories: Sequence[Sequence[int]]) -> Continuation:
        """Run the language model over histories, up to the position where the next item's text would start."""
        return Continuation(self.model, send_to_device(self.collator.generation_prompts(histories), self.model.device))


@dataclass(frozen=True)
class UserBatch:
    """Users with their histories, vectors and nearest items.

    Attributes:
        histories: (B,) items, oldest first, cut to the newest ones.
        vectors: (B, D) user vectors.
        nearest: (B, k) items, nearest first; -1 pads shorter lists.
        cosines: (B, k) of the nearest items.
    """

    histories: Sequence[Sequence[int]]
    vectors: Vectors
    nearest: NDArray[np.int64]
    cosines: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.histories)

    def take(self, rows: Sequence[int]) -> "UserBatch":
        """The users at these rows."""
        histories = [self.histories[row] for row in rows]
        return UserBatch(histories, self.vectors[rows], self.nearest[rows], self.cosines[rows])


class RankedItems(NamedTuple):
    """One user's items, best first and each once, with non-increasing scores."""

    items: NDArray[np.int64]
    scores: NDArray[np.float32]


Ranker = Callable[[UserBatch], list[RankedItems]]
