"""Splits: which interactions are filtered out, and which are held out.

Leave-one-out: a user's last interaction is test, the one before it is validation. A user with fewer than three
interactions has neither: all of them are train. Since users are active at different times, one user's training
interactions may be later than another's test interaction. This measures how well a sequence is continued.

Time: two cuts apply to all users. Training is before the first cut, validation between them, and test from the second
one on. Interactions with the same timestamp are on the same side of a cut. This measures what a model would have
predicted if it had been deployed at the cut.

Later interactions must not decide what a model is trained on. Filters of single rows (unknown item, low rating, repeat
of the previous item) never look ahead, but the k-core does: over all data, it would keep an item in training because it
sells well after the cut. Under leave-one-out, which has no common cut, the k-core is a filter of the whole dataset, as
usual. Under the time split it is computed from the interactions before the validation cut, and decides only what is
trained on. Interactions outside of it remain in histories, and later interactions need no minimum count.
"""

import math
from collections.abc import Iterator
from datetime import UTC, date, datetime
from itertools import pairwise
from typing import Final, NamedTuple

import duckdb

from pixrec_core.data.database import literal
from pixrec_core.errors import SettingsError
from pixrec_core.schemas import MIN_TESTED_LENGTH, TEST, VALIDATION
from pixrec_core.settings import SequenceSettings

_FILTERED: Final = """
CREATE TEMP TABLE filtered AS SELECT "user", item, timestamp, rating, position FROM all_interactions
"""
_CUTS: Final = "CREATE TABLE cuts (split VARCHAR, start BIGINT)"

#: All rows before the k-core; histories contain them.
_RENAME_FILTERED: Final = "ALTER TABLE filtered RENAME TO before_k_core"
_TRAINABLE: Final = "CREATE TEMP TABLE filtered AS SELECT * FROM before_k_core WHERE timestamp < $cut"


class SplitRule(NamedTuple):
    """SQL of how the interactions of each user, in their order, are divided into splits.

    Attributes:
        rows: table of the interactions.
        early: number of a user's interactions before validation.
        before_test: number of a user's interactions before test.
        is_train: whether an early interaction is train; otherwise it is in histories only. `{users}` is replaced by a
            condition on "user".
    """

    rows: str
    early: str = "count(*)"
    before_test: str = "count(*)"
    is_train: str = "true"


_LEAVE_ONE_OUT: Final = SplitRule(
    "filtered",
    f"if(count(*) < {MIN_TESTED_LENGTH}, count(*), count(*) - 2)",
    f"if(count(*) < {MIN_TESTED_LENGTH}, count(*), count(*) - 1)",
)

#: Approximate number of interactions of a range of users; their lists take about 40 MB.
ROWS_PER_RANGE: Final = 500_000

#: The last user of each range: the one whose rows pass the next multiple of `$rows`.
_LAST_USERS: Final = """
SELECT "user" FROM (
    SELECT "user", n, sum(n) OVER (ORDER BY "user") AS total
    FROM (SELECT "user", count(*) AS n FROM {table} WHERE "user" IS NOT NULL GROUP BY "user")
)
WHERE total // $rows > (total - n) // $rows
ORDER BY "user"
"""

#: An interaction of a held-out split is a target, has no history, or is later than its user's target. `before` and
#: `within` count the interactions of a user.
_HELD_OUT_COUNTS: Final = """
WITH counts AS (
    SELECT
        count(*) FILTER (split IN ('train', 'history')) AS early,
        count(*) FILTER (split = 'validation') AS validation,
        count(*) FILTER (split = 'test') AS test
    FROM interactions
    GROUP BY "user"
),
held_out AS (
    SELECT 'validation' AS split, early AS before, validation AS within FROM counts
    UNION ALL
    SELECT 'test' AS split, early + validation AS before, test AS within FROM counts
)
SELECT
    split,
    sum(within) AS interactions,
    count(*) FILTER (before > 0 AND within > 0) AS targets,
    coalesce(sum(within - 1) FILTER (before > 0 AND within > 0), 0) AS interactions_after_target,
    coalesce(sum(within) FILTER (before = 0), 0) AS interactions_without_history,
    count(*) FILTER (before = 0 AND within > 0) AS users_without_history,
    count(*) FILTER (before > 0 AND within = 0) AS users_without_target
FROM held_out
GROUP BY split
ORDER BY split DESC
"""


def user_ranges(connection: duckdb.DuckDBPyConnection, table: str) -> Iterator[str]:
    """Return SQL conditions on "user" that divide `table` into ranges of about `ROWS_PER_RANGE` rows, sorted by user.

    DuckDB spills sorts, joins and counts to disk, but lists are in memory. Whatever creates lists therefore runs once
    per range. Every user, of this or any other table, is in exactly one range.
    Rows without a user are in the first one.
    """
    last = connection.execute(_LAST_USERS.format(table=table), {"rows": ROWS_PER_RANGE}).fetchall()
    for low, high in pairwise([None, *(user for (user,) in last), None]):
        above = "true" if low is None else f'"user" > {literal(low)}'
        up_to = "true" if high is None else f'"user" <= {literal(high)}'
        yield f'({above} AND {up_to} OR "user" IS NULL)' if low is None else f"({above} AND {up_to})"


def filter_interactions(
    connection: duckdb.DuckDBPyConnection, settings: SequenceSettings
) -> tuple[SplitRule, dict[str, int]]:
    """Create the tables `cuts` and `filtered` from the view `all_interactions`.

    Returns:
        The rule of the split; counts: users_seen, before any filter; the number of interactions that each rule dropped
        or, under the time split, left untrained; the rounds of the k-core.

    Raises:
        SettingsError: no time leaves enough interactions on both sides.
    """
    connection.execute(_CUTS)
    connection.execute(_FILTERED)
    ((users,),) = connection.execute('SELECT count(DISTINCT "user") FROM filtered').fetchall()
    counts = {"users_seen": users, **_with_prefix("dropped", drop_unusable(connection, settings))}
    rule, starts = _LEAVE_ONE_OUT, _find_cuts(connection, settings) if settings.split == "time" else {}
    if starts:
        connection.executemany("INSERT INTO cuts VALUES (?, ?)", list(starts.items()))
        connection.execute(_RENAME_FILTERED)
        connection.execute(_TRAINABLE, {"cut": starts[VALIDATION]})
        early, before_test = (f"count(*) FILTER (timestamp < {starts[split]})" for split in (VALIDATION, TEST))
        is_train = "position IN (SELECT position FROM filtered WHERE {users})"
        rule = SplitRule("before_k_core", early, before_test, is_train)
    core, rounds = k_core(connection, settings)
    for name, n in _with_prefix("untrained" if starts else "dropped", core).items():
        counts[name] = counts.get(name, 0) + n  # both filters drop repeats
    return rule, counts | {"k_core_rounds": rounds}


def _with_prefix(prefix: str, counts: dict[str, int]) -> dict[str, int]:
    return {f"{prefix}_{name}": n for name, n in counts.items()}


def _find_cuts(connection: duckdb.DuckDBPyConnection, settings: SequenceSettings) -> dict[str, int]:
    """Return the starts of validation and test, in milliseconds since 1970."""
    if settings.validation_from and settings.test_from:
        return {VALIDATION: _midnight(settings.validation_from), TEST: _midnight(settings.test_from)}
    test = _latest_start(connection, settings.test_share, before=None)
    return {VALIDATION: _latest_start(connection, settings.validation_share, before=test), TEST: test}


def _latest_start(connection: duckdb.DuckDBPyConnection, share: float, before: int | None) -> int:
    """Return the latest timestamp such that at least `share` of all interactions are between it and `before`."""
    ((rows,),) = connection.execute("SELECT count(*) FROM filtered").fetchall()
    found = connection.execute(
        """SELECT timestamp FROM filtered WHERE $before IS NULL OR timestamp < $before
            ORDER BY timestamp DESC LIMIT 1 OFFSET $offset""",
        {"before": before, "offset": max(math.ceil(share * rows), 1) - 1},
    ).fetchone()
    if found is None:
        raise SettingsError(
            f"the time split finds no cut with {share:g} of {rows:,} interactions "
            f"{'after it' if before is None else f'between it and {iso(before)}'}, because many have the same time. "
            "Lower sequences.validation_share or test_share, set validation_from and test_from, or use leave_one_out"
        )
    return int(found[0])


def _midnight(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1000


def cuts(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """Return the starts of validation and test, in milliseconds since 1970; empty under leave-one-out."""
    return dict(connection.execute("SELECT split, start FROM cuts").fetchall())


def iso(milliseconds: int) -> str:
    """Return a time as ISO 8601 text, to the second, UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def held_out_counts(connection: duckdb.DuckDBPyConnection) -> dict[str, dict[str, int]]:
    """Return counts of the interactions and users of validation and test, by split.

    `interactions` = `targets` + `interactions_after_target` + `interactions_without_history`. `users_without_target`
    have a history, but no interaction in the split.
    """
    result = connection.execute(_HELD_OUT_COUNTS)
    names = [column[0] for column in result.description or ()]
    return {row[0]: dict(zip(names[1:], map(int, row[1:]), strict=True)) for row in result.fetchall()}


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
