"""The choice of the method that serves: by its score on validation users, then by comparison with what serves.

Only users with the same test sequence in both, history and target, are compared. Items that are in one of the two
catalogues only are removed from the lists, so that both methods choose from the same items.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
import polars as pl

from pixrec_core import files
from pixrec_core.data.sequences import read_items, read_measured_sequences, read_sequences
from pixrec_core.errors import ArtefactError
from pixrec_core.evaluation.bootstrap import interval, resampled_means
from pixrec_core.evaluation.metrics import METRICS, PerUser
from pixrec_core.evaluation.rankings import listed_ranks, read_ranking, renumber, scan_indices
from pixrec_core.evaluation.targets import ITEM_INDEX, USER_INDEX, Targets
from pixrec_core.evaluation.validation import selection_users, stacking_users
from pixrec_core.paths import BLEND, DatasetPaths
from pixrec_core.schemas import ITEMS, RANK, USER, VALIDATION

METRIC: Final = "NDCG@10"
K: Final = 10
MIN_SELECTION_USERS: Final = 30  # fewer measure no method


@dataclass(frozen=True)
class RankedTestSplit:
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


def compare(old: RankedTestSplit, method: str, new: RankedTestSplit, methods: Sequence[str]) -> dict[str, Comparison]:
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


def selection_scores(paths: DatasetPaths, rankings: Mapping[str, Path]) -> tuple[dict[str, float], int]:
    """Return `METRIC` of each method over selection users, seen items allowed, and the number of these users.

    With fewer than `MIN_SELECTION_USERS` of them, all stacking users are measured, and the blend is not: it has learned
    from them. Without validation users there are no scores.

    Raises:
        MissingArtefactError: sequences or a ranking have not been built.
        ArtefactError: a ranking lacks a selection user.
    """
    validation = read_sequences(paths, VALIDATION)
    selected = selection_users(validation.height)
    if selected.sum() < MIN_SELECTION_USERS:
        selected = stacking_users(validation.height)
        rankings = {method: path for method, path in rankings.items() if method != BLEND}
    users = validation.filter(selected)
    if users.is_empty():
        return {}, 0
    targets = Targets.of(read_items(paths), users)
    scores = {}
    for method, path in rankings.items():
        ranking = scan_indices(files.require(path), targets).filter(pl.col(RANK) <= K).drop_nulls(USER_INDEX).collect()
        if missing := users.height - ranking[USER_INDEX].n_unique():
            raise ArtefactError(f"the ranking {path} of {method} lacks {missing:,} validation users; rank them again")
        scores[method] = float(METRICS[METRIC](listed_ranks(ranking, targets, K)).mean())
    return scores, users.height
