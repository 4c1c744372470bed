"""Filters of interactions: rows of table `filtered` that break a rule are deleted, and counted per rule.

The rules of the k-core run until none of them deletes a row, since a deletion can cause another: without a user, an
item becomes rare; without an item, two others become consecutive repeats. The result of the user and item rules is the
k-core, which does not depend on their order.
"""

from typing import Final

import duckdb

from pixrec_core.settings import SequenceSettings

_UNKNOWN: Final = "NOT EXISTS (SELECT 1 FROM all_items WHERE all_items.item = filtered.item)"
_LOW: Final = "rating < $least"  # an interaction without a rating is kept
_REPEATED: Final = """rowid IN (
    SELECT rowid FROM filtered QUALIFY item = lag(item) OVER (PARTITION BY "user" ORDER BY timestamp, position)
)"""
_RARE: Final = "item IN (SELECT item FROM filtered GROUP BY item HAVING count(*) < $least)"
_SHORT: Final = '"user" IN (SELECT "user" FROM filtered GROUP BY "user" HAVING count(*) < $least)'


def drop_unusable(connection: duckdb.DuckDBPyConnection, settings: SequenceSettings) -> dict[str, int]:
    """Delete interactions by the rules that do not look ahead; return the number deleted per rule.

    The first of consecutive interactions with the same item is kept.
    """
    return {
        "unknown_item": _delete(connection, _UNKNOWN),
        "low_rating": _delete(connection, _LOW, settings.min_rating),
        "repeat": _delete(connection, _REPEATED) if settings.collapse_repeats else 0,
    }


def k_core(connection: duckdb.DuckDBPyConnection, settings: SequenceSettings) -> tuple[dict[str, int], int]:
    """Delete users and items with too few interactions.

    Returns:
        The number of interactions deleted per rule, and the number of rounds that deleted any.
    """
    deleted = {"repeat": 0, "rare_item": 0, "short_user": 0}
    rounds = 0
    while any((found := _round(connection, settings)).values()):
        rounds += 1
        deleted = {name: deleted[name] + n for name, n in found.items()}
    return deleted, rounds


def _round(connection: duckdb.DuckDBPyConnection, settings: SequenceSettings) -> dict[str, int]:
    return {
        "repeat": _delete(connection, _REPEATED) if settings.collapse_repeats else 0,
        "rare_item": _delete(connection, _RARE, settings.min_item_interactions),
        "short_user": _delete(connection, _SHORT, settings.min_user_interactions),
    }


def _delete(connection: duckdb.DuckDBPyConnection, condition: str, least: float | None = None) -> int:
    parameters = {} if least is None else {"least": least}
    row = connection.execute(f"DELETE FROM filtered WHERE {condition}", parameters).fetchone()  # noqa: S608
    assert row is not None, "DELETE returns one row, the count"
    return int(row[0])
