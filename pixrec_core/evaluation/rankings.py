"""Reading of ranking tables: what is wrong with one is refused, not averaged away."""

from pathlib import Path

import numpy as np
import polars as pl

from pixrec_core.errors import ArtefactError
from pixrec_core.evaluation.metrics import PerUser
from pixrec_core.evaluation.targets import ITEM_INDEX, USER_INDEX, Targets, index
from pixrec_core.schemas import ITEM, RANK, RANKING_SCHEMA, USER


def read_ranking(path: Path, method: str, targets: Targets, depth: int) -> pl.DataFrame:
    """A ranking in integers, sorted by user and rank: user_index, item_index, rank.

    Raises:
        ArtefactError: other columns than `RANKING_SCHEMA`, users or items that are not those of
            the test split and the catalogue, an item twice in a list, gaps in ranks, or lists
            too short for `depth` once the seen items are taken out.
    """
    found = pl.read_parquet_schema(path)
    if {name: found.get(name) for name in RANKING_SCHEMA} != dict(RANKING_SCHEMA):
        raise ArtefactError(f"ranking of {method}: {path} has columns {found}; expected {dict(RANKING_SCHEMA)}")
    ranking = (
        pl.scan_parquet(path)
        .select(
            index(USER, targets.users).alias(USER_INDEX), index(ITEM, targets.items).alias(ITEM_INDEX), pl.col(RANK)
        )
        .sort(USER_INDEX, RANK)
        .collect()
    )
    problems = {what: count for what, count in _problems(ranking, targets, depth).items() if count}
    if problems:
        told = ", ".join(f"{count} {what}" for what, count in problems.items())
        raise ArtefactError(f"ranking of {method} ({path}) does not fit the test split: {told}; rank again")
    return ranking


def _problems(ranking: pl.DataFrame, targets: Targets, depth: int) -> dict[str, int]:
    """How often each rule is broken."""
    lists = ranking.group_by(USER_INDEX).agg(
        pl.len().alias("length"), pl.col(RANK).min().alias("first"), pl.col(RANK).max().alias("last"),
        pl.col(RANK).n_unique().alias("different"),
    )  # fmt: skip
    gapless = (pl.col("first") == 1) & (pl.col("last") == pl.col("length")) & (pl.col("different") == pl.col("length"))
    needed = targets.seen.group_by(USER_INDEX).len("seen").join(lists, on=USER_INDEX)
    cells = ranking.select(pl.col(USER_INDEX).cast(pl.UInt64) * len(targets.items) + pl.col(ITEM_INDEX))
    known = cells.to_series().drop_nulls()
    whole = (pl.col("seen") + depth).clip(upper_bound=len(targets.items))
    return {
        "test users without a list": len(targets.users) - lists[USER_INDEX].drop_nulls().len(),
        "rows of unknown users": ranking[USER_INDEX].null_count(),
        "rows of unknown items": ranking[ITEM_INDEX].null_count(),
        "rows that repeat an item of the list": len(known) - known.n_unique(),
        "lists with gaps in their ranks": lists.filter(~gapless.fill_null(value=False)).height,
        f"lists shorter than depth {depth} plus the seen items": needed.filter(pl.col("length") < whole).height,
    }


def without_seen(ranking: pl.DataFrame, targets: Targets) -> pl.DataFrame:
    """The ranking without the items of each user's history, ranks closed up; users whose target is gone left out."""
    left_out = targets.table.filter("repeat").select(USER_INDEX)
    return closed_up(
        ranking.join(left_out, on=USER_INDEX, how="anti", maintain_order="left").join(
            targets.seen, on=[USER_INDEX, ITEM_INDEX], how="anti", maintain_order="left"
        )
    )


def closed_up(ranking: pl.DataFrame) -> pl.DataFrame:
    """A ranking that rows were taken out of, with ranks that count from 1 again."""
    return ranking.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int32).over(USER_INDEX).alias(RANK))


def target_ranks(ranking: pl.DataFrame, targets: Targets, depth: int) -> PerUser:
    """Rank of each test user's target, infinity past `depth`; (users,)."""
    hits = ranking.join(targets.table, on=[USER_INDEX, ITEM_INDEX]).filter(pl.col(RANK) <= depth)
    ranks = np.full(len(targets.users), np.inf)
    ranks[hits[USER_INDEX]] = hits[RANK]
    return ranks


def coverage(ranking: pl.DataFrame, targets: Targets, k: int) -> float:
    """Share of the catalogue (0 to 1) that stands among anybody's first `k`."""
    return ranking.filter(pl.col(RANK) <= k)[ITEM_INDEX].n_unique() / len(targets.items)
