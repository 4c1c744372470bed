"""Which interactions count: rows of table `filtered` that break a rule are deleted, and counted by rule.

The rules of the k-core run until none finds anything, since one removal can cause another: a user
gone leaves an item rare, an item gone makes two others neighbours. Where that ends (with the
user and item rules alone it is the k-core) does not depend on the order of the rules.

Every rule but one is of a row or of a user, and so of the shard that has the user. Which items are
rare is found by adding up the counts of all shards.
"""

from collections.abc import Sequence
from functools import partial
from typing import Final

import duckdb

from pixrec_core.data.user_shards import Shards
from pixrec_core.settings import SequenceSettings

_UNKNOWN: Final = "NOT EXISTS (SELECT 1 FROM all_items WHERE all_items.item = filtered.item)"
_LOW: Final = "rating < $least"  # an interaction without a rating stays: nobody rated it low
_REPEATED: Final = """rowid IN (
    SELECT rowid FROM filtered QUALIFY item = lag(item) OVER (PARTITION BY "user" ORDER BY timestamp, position)
)"""
_RARE: Final = "item IN (SELECT item FROM rare)"
_SHORT: Final = '"user" IN (SELECT "user" FROM filtered GROUP BY "user" HAVING count(*) < $least)'

_COUNTS: Final = "CREATE OR REPLACE TEMP TABLE counts AS SELECT item, count(*) AS n FROM filtered GROUP BY item"
_FEW: Final = "SELECT item FROM {counts} GROUP BY item HAVING sum(n) < {least}"


def drop_unusable(connection: duckdb.DuckDBPyConnection, settings: SequenceSettings) -> dict[str, int]:
    """Delete what breaks a rule whatever comes after it; `metadata` says which items are known.

    Of a run of repeats the first interaction stays.

    Returns:
        Interactions deleted by each rule.
    """
    return {
        "unknown_item": _delete(connection, _UNKNOWN),
        "low_rating": _delete(connection, _LOW, settings.min_rating),
        "repeat": _collapse(connection) if settings.collapse_repeats else 0,
    }


def k_core(shards: Shards, settings: SequenceSettings) -> tuple[dict[str, int], int]:
    """Delete what has too few of its kind.

    Returns:
        Interactions deleted by each rule, and the rounds that deleted anything.
    """
    deleted = {"repeat": 0, "rare_item": 0, "short_user": 0}
    rounds = 0
    while any((found := _round(shards, settings)).values()):
        rounds += 1
        deleted = {name: deleted[name] + n for name, n in found.items()}
    return deleted, rounds


def _round(shards: Shards, settings: SequenceSettings) -> dict[str, int]:
    repeats = sum(shards.map(_collapse, writes=["filtered"])) if settings.collapse_repeats else 0
    if settings.min_item_interactions > 1:
        shards.map(_count_items, writes=["counts"])
        counts = shards.union_all("counts")
        shards.broadcast("rare", _FEW.format(counts=counts, least=settings.min_item_interactions))
    return {"repeat": repeats, **summed(shards.map(partial(_prune, settings=settings), writes=["filtered"]))}


def summed(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    """The sum of each of the counts that all shards have."""
    return {name: sum(each[name] for each in counts) for name in counts[0]}


def _collapse(connection: duckdb.DuckDBPyConnection) -> int:
    return _delete(connection, _REPEATED)


def _count_items(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute(_COUNTS)


def _prune(connection: duckdb.DuckDBPyConnection, settings: SequenceSettings) -> dict[str, int]:
    return {
        "rare_item": _delete(connection, _RARE) if settings.min_item_interactions > 1 else 0,
        "short_user": _delete(connection, _SHORT, settings.min_user_interactions),
    }


def _delete(connection: duckdb.DuckDBPyConnection, condition: str, least: float | None = None) -> int:
    parameters = {} if least is None else {"least": least}
    row = connection.execute(f"DELETE FROM filtered WHERE {condition}", parameters).fetchone()  # noqa: S608
    assert row is not None, "DELETE gives one row, the count"
    return int(row[0])
