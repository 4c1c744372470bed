"""Comparison of new rankings with the ranking of the method that serves.

Only users with the same test sequence in both, history and target, are compared. Items that are in one of the two
catalogues only are removed from the lists, so that both methods choose from the same items.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
import polars as pl

from pixrec_core.data.sequences import read_measured_sequences
from pixrec_core.evaluation.bootstrap import interval, resampled_means
from pixrec_core.evaluation.metrics import METRICS, PerUser
from pixrec_core.evaluation.rankings import listed_ranks, read_ranking, renumber
from pixrec_core.evaluation.targets import ITEM_INDEX, Targets
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import ITEMS, USER

METRIC: Final = "NDCG@10"
K: Final = 10


@dataclass(frozen=True)
class Answers:
    """A test split, and the file of each method's ranking of its users.

    `sequences` has the columns `USER` and `ITEMS`, in the order of the users of `targets`.
    """

    targets: Targets
    sequences: pl.DataFrame
    rankings: Mapping[str, Path]

    @classmethod
    def read(cls, paths: DatasetPaths, rankings: Mapping[str, Path]) -> Self:
        """Read sequences.duckdb; rankings are read when they are scored.

        Raises:
            MissingArtefactError: the stage `sequences` has not run.
            ContractError: sequences hold held-out items.
        """
        return cls(Targets.read(paths), read_measured_sequences(paths).select(USER, ITEMS), rankings)

    def scores(self, method: str, items: pl.Series | None = None) -> PerUser:
        """Return (users,) `METRIC` of each test user; with `items`, of lists reduced to these items.

        Raises:
            ArtefactError: the ranking does not fit the test split.
        """
        ranking = read_ranking(self.rankings[method], method, self.targets, K)
        if items is not None:
            indices = self.targets.items.is_in(items.implode()).arg_true()
            ranking = renumber(ranking.filter(pl.col(ITEM_INDEX).is_in(indices.implode())))
        return METRICS[METRIC](listed_ranks(ranking, self.targets, K))


@dataclass(frozen=True)
class Comparison:
    """Mean `METRIC` of `old` and `new` over `pairs` users, and the 95 % interval of their difference."""

    pairs: int
    old: float
    new: float
    low: float
    high: float


def compare(old: Answers, method: str, new: Answers, methods: Sequence[str]) -> dict[str, Comparison]:
    """Compare each of `methods` of `new` with `method` of `old` by the paired bootstrap.

    Returns:
        A comparison by method; empty if no user has the same test sequence in both.
    """
    pairs = (
        old.sequences.with_row_index("old_index")
        .join(new.sequences.with_row_index("new_index"), on=USER, suffix="_new")
        .filter(pl.col(ITEMS) == pl.col(f"{ITEMS}_new"))
    )
    if pairs.is_empty() or not methods:
        return {}
    old_items, new_items = set(old.targets.items), set(new.targets.items)
    common = None if old_items == new_items else pl.Series(sorted(old_items & new_items), dtype=pl.String)
    before = old.scores(method, common)[pairs["old_index"]]
    after = np.column_stack([new.scores(each, common)[pairs["new_index"]] for each in methods])
    lows, highs = interval(resampled_means(after - before[:, np.newaxis]))
    rows = zip(methods, after.mean(axis=0), lows, highs, strict=True)
    return {
        name: Comparison(pairs.height, float(before.mean()), float(mean), float(low), float(high))
        for name, mean, low, high in rows
    }
