"""What lists are like, whether or not they hold the target: how surprising, how varied, how much is known already.

None of these is better for being higher: a list drawn by chance is novel and varied. They are read
beside the metrics of the target.
"""

import re
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, Self, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from pixrec_core import prompts
from pixrec_core.data.photo_features import photo_features
from pixrec_core.evaluation.metrics import PerUser
from pixrec_core.evaluation.targets import ITEM_INDEX, USER_INDEX, Targets
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import HAS_IMAGE, RANK, TRAIN_COUNT

K: Final = 10  # items of a list that are looked at
NOVELTY: Final = f"novelty@{K}"
REPEATS: Final = f"repeats@{K}"
TEXT_DIVERSITY: Final = f"text_diversity@{K}"
IMAGE_DIVERSITY: Final = f"image_diversity@{K}"
USERS_AT_A_TIME: Final = 10_000  # bounds the memory: 15 MB of photo features

Vectors: TypeAlias = sparse.csr_array | NDArray[np.float32]


@dataclass(frozen=True)
class ItemFacts:
    """What lists are described by.

    Attributes:
        information: (n,) bits that an item's appearance would tell: -log2 of its share of training
            interactions. An item that nobody took counts as taken once.
        contents: name of a diversity -> (n, F) vectors of length 1, whose cosine lies between 0 and
            1; a row of zeros for an item that has no such content.
    """

    information: NDArray[np.float64]
    contents: dict[str, Vectors]

    @classmethod
    def read(cls, paths: DatasetPaths, catalogue: pl.DataFrame) -> Self:
        """From the catalogue, and from its photos where there are any.

        Raises:
            MissingArtefactError: photos that the catalogue speaks of are not there.
            ArtefactError: a photo is damaged.
        """
        counts = catalogue[TRAIN_COUNT].to_numpy()
        information = np.log2(max(counts.sum(), 1)) - np.log2(np.maximum(counts, 1))
        texts = [prompts.item_text(item) for item in catalogue.iter_rows(named=True)]
        contents: dict[str, Vectors] = {TEXT_DIVERSITY: tf_idf(texts)}
        if catalogue[HAS_IMAGE].any():
            contents[IMAGE_DIVERSITY] = photo_features(paths, catalogue)
        return cls(information, contents)


def describe(ranking: pl.DataFrame, targets: Targets, facts: ItemFacts) -> dict[str, PerUser]:
    """Each figure of each test user's first `K` items, (users,); 0 where the user has no list.

    Args:
        ranking: user_index, item_index and rank, as `read_ranking` gives it.
        targets: the test split.
        facts: of the catalogue's items.
    """
    top = ranking.filter(pl.col(RANK) <= K)
    shape = (len(targets.users), len(targets.items))
    cells = (top[USER_INDEX].to_numpy(), top[ITEM_INDEX].to_numpy())
    lists = sparse.csr_array((np.ones(top.height, np.float32), cells), shape=shape)
    lengths = np.maximum(np.diff(lists.indptr), 1)
    known = top.join(targets.seen, on=[USER_INDEX, ITEM_INDEX], how="semi")[USER_INDEX].to_numpy()
    return {
        NOVELTY: lists @ facts.information / lengths,
        REPEATS: np.bincount(known, minlength=shape[0]) / lengths,
        **{name: diversity(lists, vectors) for name, vectors in facts.contents.items()},
    }


def diversity(lists: sparse.csr_array, vectors: Vectors) -> PerUser:
    """1 - mean cosine over the pairs of a list; (users,). Items without content make no pairs; 0 where there are none.

    Args:
        lists: (users, n) ones and zeros.
        vectors: (n, F) of length 1 or 0. The cosines of all pairs come from the length of their sum:
            |sum|^2 = items + 2 * sum of cosines.
    """
    has_content = np.asarray((vectors * vectors).sum(axis=1)) > 0
    items = lists @ has_content.astype(np.float64)
    starts = range(0, lists.shape[0], USERS_AT_A_TIME)
    squares = np.concatenate([_squared(lists[s : s + USERS_AT_A_TIME] @ vectors) for s in starts] or [np.empty(0)])
    pairs = items * (items - 1)
    return np.where(pairs > 0, 1 - (squares - items) / np.maximum(pairs, 1), 0)


def _squared(sums: Any) -> PerUser:
    """Squared length of each row, dense or sparse."""
    squares: PerUser = np.asarray((sums * sums).sum(axis=1), np.float64)
    return squares


def tf_idf(texts: list[str]) -> sparse.csr_array:
    """(n, words) of length 1: the words of each text, each once, rare ones weighing more."""
    words = [sorted(set(re.findall(r"\w+", text.lower()))) for text in texts]
    column = {word: number for number, word in enumerate(sorted(set(chain.from_iterable(words))))}
    columns = np.array([column[word] for word in chain.from_iterable(words)], np.int64)
    in_texts = np.bincount(columns, minlength=len(column))
    weight = 1 + np.log((1 + len(texts)) / (1 + in_texts))
    ends = np.cumsum([0, *map(len, words)])
    vectors = sparse.csr_array((weight[columns], columns, ends), shape=(len(texts), len(column)))
    lengths = np.sqrt((vectors * vectors).sum(axis=1))
    return vectors.multiply(1 / np.where(lengths > 0, lengths, 1)[:, None]).tocsr()
