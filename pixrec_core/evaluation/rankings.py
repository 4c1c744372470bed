"""Reading and validation of ranking tables."""

from pathlib import Path

import numpy as np
import polars as pl

from pixrec_core.errors import ArtefactError
from pixrec_core.evaluation.metrics import PerUser
from pixrec_core.evaluation.targets import ITEM_INDEX, REPEAT, USER_INDEX, Targets
from pixrec_core.ranking_table import id_indices
from pixrec_core.schemas import ITEM, RANK, RANKING_SCHEMA, USER


def read_ranking(path: Path, method: str, targets: Targets, depth: int) -> pl.DataFrame:
    """Return a ranking in integers, sorted by user and rank: user_index, item_index, rank.

    Raises:
        ArtefactError: a damaged file, other columns than `RANKING_SCHEMA`, users or items that are not in the test
            split and the catalogue, an item twice in a list, gaps in ranks, or lists that are shorter than `depth`
            without the seen items.
    """
    try:
        columns = pl.scan_parquet(path, glob=False).collect_schema()
        if {name: columns.get(name) for name in RANKING_SCHEMA} != dict(RANKING_SCHEMA):
            raise ArtefactError(f"ranking of {method}: {path} has columns {columns}; expected {dict(RANKING_SCHEMA)}")
        ranking = scan_indices(path, targets).sort(USER_INDEX, RANK).collect()
    except pl.exceptions.PolarsError as error:
        raise ArtefactError(f"ranking of {method}: {path} is damaged ({error}); rebuild it") from error
    problems = [f"{count:,} {problem}" for problem, count in _problems(ranking, targets, depth).items() if count]
    if problems:
        message = f"ranking of {method} ({path}) does not fit the test split: {', '.join(problems)}; rebuild it"
        raise ArtefactError(message)
    return ranking


def scan_indices(path: Path, targets: Targets) -> pl.LazyFrame:
    """Return user_index, item_index and rank of a ranking; the index of an unknown user or item is null."""
    return pl.scan_parquet(path, glob=False).select(
        id_indices(pl.col(USER), targets.users, strict=False).alias(USER_INDEX),
        id_indices(pl.col(ITEM), targets.items, strict=False).alias(ITEM_INDEX),
        pl.col(RANK),
    )


def _problems(ranking: pl.DataFrame, targets: Targets, depth: int) -> dict[str, int]:
    """Return how often each rule is broken."""
    lists = ranking.group_by(USER_INDEX).agg(
        pl.len().alias("length"), pl.col(RANK).min().alias("first"), pl.col(RANK).max().alias("last"),
        pl.col(RANK).n_unique().alias("distinct"),
    )  # fmt: skip
    # One integer per row: to count distinct structs takes several times as long.
    cells = ranking.select(pl.col(USER_INDEX).cast(pl.UInt64) * len(targets.items) + pl.col(ITEM_INDEX))
    known = cells.to_series().drop_nulls()
    gapless = (pl.col("first") == 1) & (pl.col("last") == pl.col("length")) & (pl.col("distinct") == pl.col("length"))
    seen = targets.seen.group_by(USER_INDEX).agg(pl.len().alias("seen"))
    lengths = lists.join(seen, on=USER_INDEX)
    required = (pl.col("seen") + depth).clip(upper_bound=len(targets.items))
    return {
        "test users without a list": len(targets.users) - lists[USER_INDEX].drop_nulls().len(),
        "rows of unknown users": ranking[USER_INDEX].null_count(),
        "rows of unknown items": ranking[ITEM_INDEX].null_count(),
        "rows that repeat an item of the list": len(known) - known.n_unique(),
        "lists with gaps in their ranks": lists.filter(~gapless.fill_null(value=False)).height,
        f"lists shorter than depth {depth} plus the seen items": lengths.filter(pl.col("length") < required).height,
    }


def without_seen(ranking: pl.DataFrame, targets: Targets) -> pl.DataFrame:
    """Return the ranking without seen items, with new ranks, and without the users with a seen target."""
    repeat_users = targets.table.filter(REPEAT).select(USER_INDEX)
    return renumber(
        ranking.join(repeat_users, on=USER_INDEX, how="anti", maintain_order="left").join(
            targets.seen, on=[USER_INDEX, ITEM_INDEX], how="anti", maintain_order="left"
        )
    )


def renumber(ranking: pl.DataFrame) -> pl.DataFrame:
    """Return a ranking, after rows were removed, with ranks from 1 again."""
    return ranking.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int32).over(USER_INDEX).alias(RANK))


def listed_ranks(ranking: pl.DataFrame, targets: Targets, depth: int) -> PerUser:
    """Return (users,) the rank of each test user's target in its list, infinity past `depth`."""
    hits = ranking.join(targets.table, on=[USER_INDEX, ITEM_INDEX]).filter(pl.col(RANK) <= depth)
    ranks = np.full(len(targets.users), np.inf)
    ranks[hits[USER_INDEX]] = hits[RANK]
    return ranks


def coverage(ranking: pl.DataFrame, targets: Targets, k: int) -> float:
    """Return the share of the catalogue (0 to 1) that is among the first `k` items of any user."""
    return ranking.filter(pl.col(RANK) <= k)[ITEM_INDEX].n_unique() / len(targets.items)
