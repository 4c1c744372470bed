"""Properties of recommended lists: novelty, diversity and the share of seen items.

Higher is not better: a random list is novel and diverse. Read them together with the metrics of the target.
"""

from dataclasses import dataclass
from typing import Any, Final, Self, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from pixrec_core import prompts
from pixrec_core.data.item_features import read_photo_features
from pixrec_core.data.words import words
from pixrec_core.evaluation.metrics import PerUser
from pixrec_core.evaluation.targets import ITEM_INDEX, USER_INDEX, Targets
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import HAS_IMAGE, RANK, TRAIN_COUNT

K: Final = 10  # items of a list that count
NOVELTY: Final = f"novelty@{K}"
REPEATS: Final = f"repeats@{K}"
TEXT_DIVERSITY: Final = f"text_diversity@{K}"
IMAGE_DIVERSITY: Final = f"image_diversity@{K}"
USERS_PER_BLOCK: Final = 10_000  # bounds the memory: 15 MB of photo features

Vectors: TypeAlias = sparse.csr_array | NDArray[np.float32]


@dataclass(frozen=True)
class ItemFacts:
    """Facts of items from which the properties of lists are computed.

    Attributes:
        information: (n,) bits: -log2 of the item's share of training interactions. A cold item counts as one
            interaction.
        contents: (n, F) vectors by name of a diversity, of length 1; a row of zeros for an item without such content.
    """

    information: NDArray[np.float64]
    contents: dict[str, Vectors]

    @classmethod
    def read(cls, paths: DatasetPaths, catalogue: pl.DataFrame) -> Self:
        """Compute the facts from the catalogue and its features.

        Raises:
            MissingArtefactError: the stage `item_features` has not run.
            ArtefactError: a file of it is damaged.
        """
        counts = catalogue[TRAIN_COUNT].to_numpy()
        information = np.log2(max(counts.sum(), 1)) - np.log2(np.maximum(counts, 1))
        texts = [prompts.item_text(item) for item in catalogue.iter_rows(named=True)]
        contents: dict[str, Vectors] = {TEXT_DIVERSITY: tf_idf(texts)}
        if catalogue[HAS_IMAGE].any():
            contents[IMAGE_DIVERSITY] = np.asarray(read_photo_features(paths).values)
        return cls(information, contents)


def describe_lists(ranking: pl.DataFrame, targets: Targets, facts: ItemFacts) -> dict[str, PerUser]:
    """Return (users,) each property of each test user's first `K` items in a ranking of `read_ranking`.

    It is 0 for a user without a list.
    """
    top = ranking.filter(pl.col(RANK) <= K)
    shape = (len(targets.users), len(targets.items))
    cells = (top[USER_INDEX].to_numpy(), top[ITEM_INDEX].to_numpy())
    lists = sparse.csr_array((np.ones(top.height, np.float32), cells), shape=shape)
    lengths = np.maximum(np.diff(lists.indptr), 1)
    seen = top.join(targets.seen, on=[USER_INDEX, ITEM_INDEX], how="semi")[USER_INDEX].to_numpy()
    return {
        NOVELTY: lists @ facts.information / lengths,
        REPEATS: np.bincount(seen, minlength=shape[0]) / lengths,
        **{name: diversity(lists, vectors) for name, vectors in facts.contents.items()},
    }


def diversity(lists: sparse.csr_array, vectors: Vectors) -> PerUser:
    """Return (users,) 1 - the mean cosine over pairs of items with content; 0 for a list without pairs.

    Args:
        lists: (users, n) ones and zeros.
        vectors: (n, F) of length 1 or 0. The length of their sum gives the cosines of all pairs:
            |sum|^2 = items + 2 * sum of cosines.
    """
    has_content = np.asarray((vectors * vectors).sum(axis=1)) > 0
    items = lists @ has_content.astype(np.float64)
    starts = range(0, lists.shape[0], USERS_PER_BLOCK)
    squares = np.concatenate([_squared(lists[s : s + USERS_PER_BLOCK] @ vectors) for s in starts] or [np.empty(0)])
    pairs = items * (items - 1)
    return np.where(pairs > 0, 1 - (squares - items) / np.maximum(pairs, 1), 0)


def _squared(sums: Any) -> PerUser:
    """Return the squared length of each row, dense or sparse."""
    squares: PerUser = np.asarray((sums * sums).sum(axis=1), np.float64)
    return squares


def tf_idf(texts: list[str]) -> sparse.csr_array:
    """Return (n, words) TF-IDF vectors of length 1; each word of a text counts once."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not any(words(text) for text in texts):  # scikit-learn refuses an empty vocabulary
        return sparse.csr_array((len(texts), 0))
    return sparse.csr_array(TfidfVectorizer(binary=True, analyzer=words).fit_transform(texts))
