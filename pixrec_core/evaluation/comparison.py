"""Comparison of a new ranking with the ranking of the model that serves.

Only users whose whole test sequence, history and target, is the same in both are compared. Items that one of the two
catalogues lacks are removed from the lists of the other, so that both choose from the same items.
"""

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import polars as pl

from pixrec_core.data.sequences import read_sequences
from pixrec_core.evaluation.bootstrap import interval, resampled_means
from pixrec_core.evaluation.metrics import METRICS, PerUser
from pixrec_core.evaluation.rankings import listed_ranks, read_ranking, renumber
from pixrec_core.evaluation.targets import ITEM_INDEX, Targets
from pixrec_core.paths import VariantPaths
from pixrec_core.schemas import ITEMS, TEST, USER

METRIC: Final = "NDCG@10"
K: Final = 10


@dataclass(frozen=True)
class Answers:
    """A ranking with its test split.

    Attributes:
        targets: of the test split.
        sequences: `USER` and `ITEMS` of the test split, in the order of the targets' users.
        ranking: from `read_ranking`.
    """

    targets: Targets
    sequences: pl.DataFrame
    ranking: pl.DataFrame

    @classmethod
    def read(cls, paths: VariantPaths) -> Self:
        """Read sequences.duckdb and the variant's ranking.

        Raises:
            MissingArtefactError: one of them has not been built.
            ContractError: sequences hold held-out items.
            ArtefactError: the ranking does not fit the test split.
        """
        targets = Targets.read(paths.dataset)
        sequences = read_sequences(paths.dataset, TEST).select(USER, ITEMS)
        return cls(targets, sequences, read_ranking(paths.ranking, paths.variant, targets, K))

    def scores(self, items: pl.Series | None = None) -> PerUser:
        """Return (users,) `METRIC` of each test user; with `items`, of lists reduced to these items."""
        ranking = self.ranking
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


def compare(old: Answers, new: Answers) -> Comparison | None:
    """Compare by the paired bootstrap; None if no user has the same test sequence in both."""
    pairs = (
        old.sequences.with_row_index("old_index")
        .join(new.sequences.with_row_index("new_index"), on=USER, suffix="_new")
        .filter(pl.col(ITEMS) == pl.col(f"{ITEMS}_new"))
    )
    if pairs.is_empty():
        return None
    old_items, new_items = set(old.targets.items), set(new.targets.items)
    common = None if old_items == new_items else pl.Series(sorted(old_items & new_items), dtype=pl.String)
    before, after = old.scores(common)[pairs["old_index"]], new.scores(common)[pairs["new_index"]]
    low, high = interval(resampled_means((after - before)[:, np.newaxis]))
    return Comparison(pairs.height, float(before.mean()), float(after.mean()), float(low[0]), float(high[0]))
