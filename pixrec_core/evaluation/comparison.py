"""Two rankings by the same users: the one that a served checkpoint was judged by, and that of a new one.

A pair is a test user whose whole test sequence, history and target, is the same on both sides: only then were
both asked the same. Items that one side's catalogue lacks are taken out of the other's lists, ranks closed up,
so that neither has more to choose from.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from pixrec_core.data.sequences import read_sequences
from pixrec_core.evaluation.bootstrap import interval, resampled_means
from pixrec_core.evaluation.metrics import METRICS, PerUser
from pixrec_core.evaluation.rankings import closed_up, read_ranking, target_ranks
from pixrec_core.evaluation.targets import ITEM_INDEX, Targets
from pixrec_core.paths import VariantPaths
from pixrec_core.schemas import ITEMS, TEST, USER

METRIC: Final = "NDCG@10"
K: Final = 10


@dataclass(frozen=True)
class Answers:
    """A ranking, and the test split that it answers.

    Attributes:
        targets: of the test split.
        sequences: `USER` and `ITEMS` of the test split, in the order of the targets' users.
        ranking: as `read_ranking` gives it.
    """

    targets: Targets
    sequences: pl.DataFrame
    ranking: pl.DataFrame

    @classmethod
    def read(cls, paths: VariantPaths) -> "Answers":
        """From sequences.duckdb and the variant's ranking.

        Raises:
            MissingArtefactError: one of them has not been made.
            ContractError: sequences of a split know more than they may.
            ArtefactError: the ranking does not fit the test split.
        """
        targets = Targets.read(paths.dataset)
        sequences = read_sequences(paths.dataset, TEST).select(USER, ITEMS)
        return cls(targets, sequences, read_ranking(paths.ranking, paths.variant, targets, K))

    def scores(self, among: pl.Series | None = None) -> PerUser:
        """`METRIC` of each test user, (users,); with `among`, of the lists that hold these items alone."""
        ranking = self.ranking
        if among is not None:
            kept = self.targets.items.is_in(among.implode()).arg_true()
            ranking = closed_up(ranking.filter(pl.col(ITEM_INDEX).is_in(kept.implode())))
        return METRICS[METRIC](target_ranks(ranking, self.targets, K))


@dataclass(frozen=True)
class Comparison:
    """`new` and `old` are means of `METRIC` over the pairs; `low` and `high` the 95 % interval of their difference."""

    pairs: int
    old: float
    new: float
    low: float
    high: float


def compare(old: Answers, new: Answers) -> Comparison | None:
    """Compare by the paired bootstrap; None where no user was asked the same on both sides."""
    same = (
        old.sequences.with_row_index("old_index")
        .join(new.sequences.with_row_index("new_index"), on=USER, suffix="_new")
        .filter(pl.col(ITEMS) == pl.col(f"{ITEMS}_new"))
    )
    if same.is_empty():
        return None
    ours, theirs = set(new.targets.items), set(old.targets.items)
    among = None if ours == theirs else pl.Series(sorted(ours & theirs), dtype=pl.String)
    before, after = old.scores(among)[same["old_index"]], new.scores(among)[same["new_index"]]
    low, high = interval(resampled_means((after - before)[:, np.newaxis]))
    return Comparison(same.height, float(before.mean()), float(after.mean()), float(low[0]), float(high[0]))
