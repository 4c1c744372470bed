"""Online metrics: which of the lists that the server showed led to a purchase.

A list is a hit if its user bought one of its items within some days after it was shown. Every list with the item
counts, not only the last one. Of lists without a user only the number is reported.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import polars as pl

from pixrec_core.schemas import DAY_MS, ITEM, METHOD, TIMESTAMP, USER
from pixrec_core.stages import Stats

FILES: Final = "shown-*.jsonl"
POSITIONS: Final = 20  # of a list that are reported

#: A line of the server's log; `time` is milliseconds since 1970.
SHOWN_SCHEMA: Final[dict[str, Any]] = {
    "time": pl.Int64,
    USER: pl.String,
    METHOD: pl.String,
    "promotion": pl.Int64,
    "items": pl.List(pl.String),
}


def measure_online(folder: Path, interactions: Path, window_days: float) -> Stats:
    """Return hit rates by method and by position; all promotions of a method count together.

    `folder` has the log of the server, `interactions` the later purchases; a purchase counts for `window_days` days
    after a list.

    Returns:
        `lists`, `lists_without_user`, `unreadable_lines`; `until`, the newest purchase (ms since 1970), after which
        nothing can be a hit; and per method `lists`, `hits`, `hit_rate` (0 to 1) and `hits_by_position`.
    """
    bought = pl.scan_parquet(interactions, glob=False).select(USER, ITEM, TIMESTAMP)
    counts: list[pl.DataFrame] = []
    lists = without_user = unreadable = 0
    for shown, bad in _read_files(folder):
        unreadable += bad
        lists += shown.height
        known = shown.filter(pl.col(USER).is_not_null())
        without_user += shown.height - known.height
        counts.append(_count_hits(known, bought, window_days))
    until = bought.select(pl.col(TIMESTAMP).max()).collect().item()
    return {
        "lists": lists,
        "lists_without_user": without_user,
        "unreadable_lines": unreadable,
        "window_days": window_days,
        "until": until,
        "methods": _summary(counts),
    }


def _read_files(folder: Path) -> Iterator[tuple[pl.DataFrame, int]]:
    """Yield the lists of each file, and the number of its unreadable lines, as after a crash."""
    for path in sorted(folder.glob(FILES)):
        rows, bad = [], 0
        with path.open("rb") as file:
            for line in file:
                try:
                    row = json.loads(line)
                    rows.append(tuple(row[name] for name in SHOWN_SCHEMA))
                except (ValueError, KeyError, TypeError):
                    bad += 1
        yield pl.DataFrame(rows, schema=SHOWN_SCHEMA, orient="row"), bad


def _count_hits(shown: pl.DataFrame, bought: pl.LazyFrame, window_days: float) -> pl.DataFrame:
    """Return one row per list: its method, and the positions (from 1) of its items that were bought."""
    rows = shown.lazy().with_row_index("list")
    entries = rows.with_columns(pl.int_ranges(1, pl.col("items").list.len() + 1).alias("position"))
    entries = entries.explode("items", "position").rename({"items": ITEM})
    after = pl.col(TIMESTAMP) - pl.col("time")
    hits = (
        entries.join(bought, on=[USER, ITEM])
        .filter(after > 0, after <= window_days * DAY_MS)
        .group_by("list")
        .agg(pl.col("position").unique().sort())
    )
    joined = rows.join(hits, on="list", how="left").select(METHOD, pl.col("position").fill_null([]).alias("positions"))
    counted: pl.DataFrame = joined.collect()
    return counted


def _summary(counts: list[pl.DataFrame]) -> dict[str, dict[str, Any]]:
    """Return the figures of each method."""
    if not counts:
        return {}
    summary = {}
    for (method,), rows in pl.concat(counts).group_by(METHOD, maintain_order=True):
        positions = rows["positions"].explode().drop_nulls().value_counts()
        by_position = dict(positions.filter(pl.col("positions") <= POSITIONS).sort("positions").iter_rows())
        hits = int((rows["positions"].list.len() > 0).sum())
        summary[str(method)] = {
            "lists": rows.height,
            "hits": hits,
            "hit_rate": hits / rows.height,
            "hits_by_position": {str(position): count for position, count in by_position.items()},
        }
    return dict(sorted(summary.items()))
