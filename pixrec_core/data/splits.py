"""Which interactions are held out, and which are left out: the `interactions` table with its splits.

Leave-one-out: a user's last interaction is test, the last but one validation. A user with fewer than
three interactions has neither: all of them are train. Users' times differ, so one user's training may
lie after another's test: it asks how well a sequence is continued.

Time: two instants hold for all users. Training is what lies before the first, validation what lies
between them, test what lies from the second on; an instant is never divided, so ties at a cut all
lie after it. It asks what a model would have done had it been deployed at the cut.

What depends on later interactions must not decide what is trained on. Row by row rules (unknown
item, low rating, repeat of the item just before) never look ahead. The k-core does: counted over
all the data, it would train on an item because it sells well after the cut. Under leave-one-out it
is, as everywhere, a filter of the whole data set, which then has no common present. Under the time
split it is taken of what lies before the validation cut, and says only what is trained on: what
it leaves out stays in histories (people did buy it), and later interactions are held to no count.
"""

import math
from collections.abc import Mapping
from datetime import UTC, date, datetime
from functools import partial
from typing import Final

import duckdb

from pixrec_core.data import filters
from pixrec_core.data.user_shards import Shards, user_ranges
from pixrec_core.errors import SettingsError
from pixrec_core.schemas import HISTORY_ONLY, MIN_TESTED_LENGTH, TEST, TRAIN, VALIDATION
from pixrec_core.settings import SequenceSettings

_FILTERED: Final = "CREATE TEMP TABLE filtered AS FROM all_interactions"
_CUTS: Final = "CREATE TABLE cuts (split VARCHAR, start BIGINT)"

#: Every filtered row before the k-core, which histories are made from.
_RENAME_FILTERED: Final = "ALTER TABLE filtered RENAME TO before_k_core"
_TRAINABLE: Final = "CREATE TEMP TABLE filtered AS SELECT * FROM before_k_core WHERE timestamp < $cut"

#: To compress the many short item ids takes a third of the time of writing, and saves a quarter of the room.
_INTERACTIONS: Final = """
CREATE TABLE interactions (
    "user" VARCHAR, item VARCHAR USING COMPRESSION uncompressed, timestamp BIGINT, rating DOUBLE, position BIGINT,
    place BIGINT, split VARCHAR
)
"""
_FILLED: Final = """
INSERT INTO interactions
    SELECT "user", item, timestamp, rating, position, place, {split} AS split
    FROM (
        SELECT *,
            row_number() OVER (PARTITION BY "user" ORDER BY timestamp, position) AS place,
            count(*) OVER (PARTITION BY "user") AS places
        FROM {rows}
        WHERE {some_users}
    )
    ORDER BY "user", place
"""
_BY_PLACE: Final = f"""CASE
    WHEN places < {MIN_TESTED_LENGTH} THEN '{TRAIN}'
    WHEN place = places THEN '{TEST}'
    WHEN place = places - 1 THEN '{VALIDATION}'
    ELSE '{TRAIN}' END"""
_BY_TIME: Final = f"""CASE
    WHEN timestamp >= {{test}} THEN '{TEST}'
    WHEN timestamp >= {{validation}} THEN '{VALIDATION}'
    WHEN position IN (SELECT position FROM filtered WHERE {{some_users}}) THEN '{TRAIN}'
    ELSE '{HISTORY_ONLY}' END"""  # noqa: S608

#: What became of each split's interactions: they are targets, or have no history, or come after
#: their user's target. `before` and `within` count one user's interactions.
_ACCOUNT: Final = """
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


def fill(shards: Shards, settings: SequenceSettings) -> dict[str, int]:
    """Make the table `interactions` of all shards, and table `cuts` of the file.

    Returns:
        users_seen, before any filter; interactions that each rule dropped, or under the time split left untrained; and
        the rounds of the k-core.

    Raises:
        SettingsError: there is no instant with interactions enough on both sides.
    """
    shards.connection.execute(_CUTS)
    counts = filters.summed(shards.map(partial(_usable, settings=settings), writes=["filtered"]))
    starts = _find_cuts(shards, settings) if settings.split == "time" else {}
    if starts:
        shards.connection.executemany("INSERT INTO cuts VALUES (?, ?)", list(starts.items()))
        shards.map(partial(_set_trainable_apart, cut=starts[VALIDATION]), writes=["filtered", "before_k_core"])
    core, rounds = filters.k_core(shards, settings)
    for name, n in _named("untrained" if starts else "dropped", core).items():
        counts[name] = counts.get(name, 0) + n  # repeats fall to both
    shards.map(partial(_label, starts=starts), writes=["interactions"])
    shards.gather("interactions", _INTERACTIONS, '"user", place', ranges_of="interactions")
    return counts | {"k_core_rounds": rounds}


def _usable(connection: duckdb.DuckDBPyConnection, settings: SequenceSettings) -> dict[str, int]:
    connection.execute(_FILTERED)
    ((users,),) = connection.execute('SELECT count(DISTINCT "user") FROM filtered').fetchall()
    return {"users_seen": users, **_named("dropped", filters.drop_unusable(connection, settings))}


def _set_trainable_apart(connection: duckdb.DuckDBPyConnection, cut: int) -> None:
    connection.execute(_RENAME_FILTERED)
    connection.execute(_TRAINABLE, {"cut": cut})


def _label(connection: duckdb.DuckDBPyConnection, starts: Mapping[str, int]) -> None:
    rows, split = ("before_k_core", _BY_TIME) if starts else ("filtered", _BY_PLACE)
    connection.execute(_INTERACTIONS)
    for some_users in user_ranges(connection, rows):
        labels = split.format(some_users=some_users, **starts)
        connection.execute(_FILLED.format(rows=rows, split=labels, some_users=some_users))


def _named(prefix: str, counts: dict[str, int]) -> dict[str, int]:
    return {f"{prefix}_{name}": n for name, n in counts.items()}


def _find_cuts(shards: Shards, settings: SequenceSettings) -> dict[str, int]:
    """Starts of validation and test, in milliseconds since 1970."""
    if settings.validation_from and settings.test_from:
        return {VALIDATION: _midnight(settings.validation_from), TEST: _midnight(settings.test_from)}
    test = _latest_start(shards, settings.test_share, before=None)
    return {VALIDATION: _latest_start(shards, settings.validation_share, before=test), TEST: test}


def _latest_start(shards: Shards, share: float, before: int | None) -> int:
    """The latest instant from which, up to `before`, at least `share` of all interactions lie."""
    filtered = shards.union_all("filtered")
    ((rows,),) = shards.connection.execute(f"SELECT count(*) FROM {filtered}").fetchall()  # noqa: S608
    found = shards.connection.execute(
        f"""SELECT timestamp FROM {filtered} WHERE $before IS NULL OR timestamp < $before
            ORDER BY timestamp DESC LIMIT 1 OFFSET $offset""",  # noqa: S608
        {"before": before, "offset": max(math.ceil(share * rows), 1) - 1},
    ).fetchone()
    if found is None:
        raise SettingsError(
            f"the time split finds no cut with {share:g} of {rows:,} interactions "
            f"{'from it on' if before is None else f'between it and {iso(before)}'}; many share one time: lower "
            "sequences.validation_share or test_share, set validation_from and test_from, or use leave_one_out"
        )
    return int(found[0])


def _midnight(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1000


def cuts(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """First instant of validation and of test, in milliseconds since 1970; empty under leave-one-out."""
    return dict(connection.execute("SELECT split, start FROM cuts").fetchall())


def iso(milliseconds: int) -> str:
    """An instant in print, to the second (UTC)."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def account(connection: duckdb.DuckDBPyConnection) -> dict[str, dict[str, int]]:
    """What became of the interactions of validation and of test, by split.

    `interactions` = `targets` + `interactions_after_target` + `interactions_without_history`; of the
    users with a history, `users_without_target` did nothing in the split.
    """
    result = connection.execute(_ACCOUNT)
    names = [column[0] for column in result.description or ()]
    return {row[0]: dict(zip(names[1:], map(int, row[1:]), strict=True)) for row in result.fetchall()}
