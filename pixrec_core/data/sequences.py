"""The sequences stage: interactions to one validated DuckDB file of sequences, divided into splits by `data.splits`.

A user's interactions are sorted by (timestamp, position). Many have the same timestamp, and the line number at least
makes their order reproducible. A `train` sequence with one item has no target, but its item counts towards popularity.
A user with few interactions has only a `train` sequence.

A user with a history before a held-out split and at least one interaction in it has one target there: the first
interaction, which follows everything known at that time. Later interactions would be predicted from an outdated
history, and several targets would give active users more weight in the metrics. The history of a test target contains
everything before the test split, validation included.

Rankings contain every item with at least one filtered interaction. An item whose interactions are all held out is a
cold item, with `train_count` 0. Items without interactions would dilute the metrics, so they are included only by
`include_cold_items`. An item's text comes from the metadata, whatever the split.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa

from pixrec_core import files
from pixrec_core.data import contract, database, splits
from pixrec_core.data.profile import profile_sequences
from pixrec_core.data.raw_table import Balance
from pixrec_core.errors import ContractError
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import CATALOGUE_SCHEMA, HISTORY_ONLY, SPLITS, TEST, TRAIN, VALIDATION, clean_id
from pixrec_core.settings import SequenceSettings
from pixrec_core.stages import Stats

log = logging.getLogger(__name__)

_INPUTS: Final = """
CREATE TEMP VIEW all_items AS FROM read_parquet({items});
CREATE TEMP VIEW all_interactions AS FROM read_parquet({interactions});
CREATE TEMP VIEW items_with_photo AS SELECT item FROM read_parquet({images}) WHERE status = 'ok';
"""

#: Item ids are many and short: compressing them would take longer than creating the lists.
_SEQUENCES: Final = """
CREATE TABLE sequences (
    split VARCHAR, "user" VARCHAR, items VARCHAR[] USING COMPRESSION uncompressed, timestamps BIGINT[], tied BOOLEAN
)
"""
#: DuckDB reads the batches of a table in parallel.
_USERS_PER_BATCH: Final = 10_000

_COUNTS_BY_USER: Final = """
SELECT "user", count(*) AS n, {early} AS early, {before_test} AS before_test
FROM {rows} WHERE {users} GROUP BY "user" ORDER BY "user"
"""
_ENTRIES: Final = """
SELECT item AS items, timestamp AS timestamps, rating AS ratings, position AS positions,
    coalesce({is_train}, false) AS is_train
FROM {rows} WHERE {users} ORDER BY "user", timestamp, position
"""
#: Compressing the item ids would take a third of the writing time and save a quarter of the space.
_INTERACTIONS: Final = """
CREATE TABLE interactions (
    "user" VARCHAR, item VARCHAR USING COMPRESSION uncompressed, timestamp BIGINT, rating DOUBLE, position BIGINT,
    ordinal BIGINT, split VARCHAR
)
"""
_INSERT_INTERACTIONS: Final = f"""
INSERT INTO interactions
    SELECT "user", item, timestamp, rating, position, ordinal, CASE
        WHEN ordinal > before_test THEN '{TEST}'
        WHEN ordinal > early THEN '{VALIDATION}'
        WHEN is_train THEN '{TRAIN}'
        ELSE '{HISTORY_ONLY}' END
    FROM (
        SELECT "user", early, before_test, unnest(items) AS item, unnest(timestamps) AS timestamp,
            unnest(ratings) AS rating, unnest(positions) AS position, unnest(is_train) AS is_train,
            generate_subscripts(items, 1) AS ordinal
        FROM histories
    )
"""  # noqa: S608
#: Splits follow each other in a user's order, so a history is a prefix of the lists.
_TRAIN: Final = """
SELECT 'train', "user", list_where(items[:early], is_train[:early]) AS train_items,
    list_where(timestamps[:early], is_train[:early]), false
FROM histories
WHERE len(train_items) > 0
"""
_HELD_OUT: Final = """
SELECT '{split}', "user", items[:{before} + 1], timestamps[:{before} + 1],
    coalesce(timestamps[{before} + 1] IN (timestamps[{before}], timestamps[{before} + 2]), false)
FROM histories
WHERE {before} > 0 AND {before} < {end}
"""
_PARTS: Final = (
    _TRAIN,
    _HELD_OUT.format(split="validation", before="early", end="before_test"),
    _HELD_OUT.format(split="test", before="before_test", end="n"),
)
_COUNTS: Final = """
CREATE TEMP TABLE item_counts AS
    SELECT item, count(*) FILTER (split = 'train') AS train_count FROM interactions GROUP BY item
"""
_ITEMS: Final = """
CREATE TABLE items AS
    SELECT
        all_items.* EXCLUDE (other_image_urls),
        item IN (SELECT item FROM items_with_photo) AS has_image,
        coalesce(train_count, 0) AS train_count
    FROM all_items {join} JOIN item_counts USING (item)
    ORDER BY item
"""

#: A user's place in the order of checksums does not depend on other users: of two days, most users are drawn on both.
_MEASURED: Final = """
CREATE TABLE measured_users AS
    SELECT "user" FROM sequences WHERE split = 'test' ORDER BY md5("user") LIMIT $users
"""

#: Rules that leave out interactions, in words.
RULES: Final = {
    "unknown_item": "with items that the items file lacks",
    "low_rating": "with a rating below `min_rating`",
    "repeat": "consecutive repeats of an item (`collapse_repeats`)",
    "rare_item": "with items of fewer than `min_item_interactions`",
    "short_user": "of users with fewer than `min_user_interactions`",
}


def build_sequences(settings: SequenceSettings, paths: DatasetPaths) -> Stats:
    """Build `sequences.duckdb`, and write the results of its validation.

    Returns:
        The profile; counts of what was left out, by reason; those of validation and test under their names.

    Raises:
        MissingArtefactError: items, interactions or images have not been built.
        ArtefactError: one of them is damaged.
        SettingsError: the time split finds no cut with enough interactions on both sides.
        ContractError: the new file breaks the data contract. It is kept as `sequences.rejected.duckdb`, and the
            previous `sequences.duckdb` remains.
    """
    files.remove(paths.sequences_rejected)
    with files.replacing(paths.sequences) as temporary:
        with database.create_database(temporary) as connection:
            left_out = _fill_tables(connection, settings, paths)
            balance = _balance(connection, left_out)
        with database.open_read_only(temporary) as connection:
            profile = profile_sequences(connection)
            held_out, cuts = splits.held_out_counts(connection), splits.cuts(connection)
        if failed := contract.check_profile("sequences", profile, paths):
            temporary.replace(paths.sequences_rejected)
            raise ContractError(_rejection(failed, left_out, paths))
    contract.date_results_of_sequences(paths)
    tested = held_out[TEST]["targets"]
    log.info("%s: %s", paths.root.name, balance.sentence("interactions in sequences"))
    return {
        "split": settings.split,
        "cuts": {split: splits.iso(start) for split, start in cuts.items()},
        "profile": contract.informative_metrics("sequences", profile),
        **left_out,
        "measured_users": min(settings.test_users or tested, tested),
        "users_left_out": left_out["users_seen"] - profile["users"],
        "balance": balance.stats,
        **held_out,
    }


def _fill_tables(
    connection: duckdb.DuckDBPyConnection, settings: SequenceSettings, paths: DatasetPaths
) -> dict[str, int]:
    """Fill all tables; return counts before filtering, and of what each filter dropped."""
    inputs = {"items": paths.items, "interactions": paths.interactions, "images": paths.images_manifest}
    files_of = {name: database.literal(database.parquet_path(path)) for name, path in inputs.items()}
    connection.execute(_INPUTS.format(**files_of))
    ((items,),) = connection.execute("SELECT count(*) FROM all_items").fetchall()
    rule, dropped = splits.filter_interactions(connection, settings)
    _fill_by_user(connection, rule, _PARTS)
    ((users,),) = connection.execute("SELECT count(*) FROM sequences WHERE split = 'test'").fetchall()
    if 0 < settings.test_users < users:
        log.info("%s of %s test users are drawn to be measured", f"{settings.test_users:,}", f"{users:,}")
        connection.execute(_MEASURED, {"users": settings.test_users})
    connection.execute(_COUNTS)
    connection.execute(_ITEMS.format(join="LEFT" if settings.include_cold_items else "INNER"))
    ((with_interactions,),) = connection.execute("SELECT count(*) FROM item_counts").fetchall()
    return {"items_seen": items, "items_never_bought": items - with_interactions, **dropped}


def _fill_by_user(connection: duckdb.DuckDBPyConnection, rule: splits.SplitRule, parts: Sequence[str]) -> None:
    """Create the tables `interactions` and `sequences`, one range of users after the other."""
    connection.execute(_INTERACTIONS + ";" + _SEQUENCES)
    for users in splits.user_ranges(connection, rule.rows):
        connection.register("histories", _read_histories(connection, rule, users))
        connection.execute(_INSERT_INTERACTIONS)
        connection.execute(f"INSERT INTO sequences {' UNION ALL '.join(parts)}")
        connection.unregister("histories")


def _read_histories(connection: duckdb.DuckDBPyConnection, rule: splits.SplitRule, users: str) -> pa.Table:
    """Return one row per user of a range: "user", n, early, before_test, and n interactions as lists.

    Arrow divides sorted columns into lists without a copy; DuckDB's `list` and `list_sort` would take much longer.
    """
    forms = {name: sql.format(users=users) for name, sql in rule._asdict().items()}
    counts, entries = (
        connection.sql(query.format(users=users, **forms)).to_arrow_table() for query in (_COUNTS_BY_USER, _ENTRIES)
    )
    offsets = pa.array(np.append(0, np.cumsum(counts["n"])), pa.int32())
    for name in entries.column_names:
        counts = counts.append_column(name, pa.ListArray.from_arrays(offsets, entries[name].combine_chunks()))
    return pa.Table.from_batches(counts.to_batches(max_chunksize=_USERS_PER_BATCH), counts.schema)


def _balance(connection: duckdb.DuckDBPyConnection, left_out: dict[str, int]) -> Balance:
    """Return what became of the interactions that were read."""
    ((read, kept),) = connection.execute(
        "SELECT (SELECT count(*) FROM all_interactions), (SELECT count(*) FROM interactions)"
    ).fetchall()
    return Balance(read, kept, dropped={words: left_out.get(f"dropped_{rule}", 0) for rule, words in RULES.items()})


def _rejection(failed: list[contract.CheckResult], left_out: dict[str, int], paths: DatasetPaths) -> str:
    counts = ", ".join(f"{name} {n:,}" for name, n in left_out.items())
    return "\n  ".join(
        [
            f"the sequences built from {paths.items} and {paths.interactions} break the data contract:",
            *map(str, failed),
            f"left out by the filters: {counts}",
            f"correct the source, or relax [sequences] in pixrec.toml; the rejected file is {paths.sequences_rejected}",
        ]
    )


#: A refit trains on every interaction, so nothing is held out.
_ALL_AS_TRAINING: Final = """
CREATE TABLE cuts AS FROM measured.cuts WHERE false;
CREATE TABLE items AS
    SELECT items.* REPLACE (coalesce(counts.n, 0) AS train_count)
    FROM measured.items AS items LEFT JOIN (SELECT item, count(*) AS n FROM interactions GROUP BY item) AS counts
    USING (item)
    ORDER BY item
"""


def write_all_as_training(paths: DatasetPaths, target: Path) -> None:
    """Write a copy of sequences.duckdb with every interaction in the training split: to serve, never to measure.

    Raises:
        MissingArtefactError: the sequences stage has not run.
        ArtefactError: the file is damaged.
    """
    source = database.literal(files.require(paths.sequences))
    with files.replacing(target) as temporary, database.create_database(temporary) as connection:
        connection.execute(f"ATTACH {source} AS measured (READ_ONLY)")
        _fill_by_user(connection, splits.SplitRule("measured.interactions"), [_TRAIN])
        connection.execute(_ALL_AS_TRAINING)
        connection.execute("DETACH measured")


def read_items(paths: DatasetPaths) -> pl.DataFrame:
    """Return the catalogue: `CATALOGUE_SCHEMA`, one row per item, sorted by item.

    Raises:
        MissingArtefactError: the sequences stage has not run.
        ArtefactError: the file is damaged.
    """
    with database.open_read_only(paths.sequences) as connection:
        catalogue: pl.DataFrame = connection.sql("SELECT * FROM items ORDER BY item").pl()
    return catalogue.select(CATALOGUE_SCHEMA.names())


class Histories:
    """Items of users' filtered interactions, all splits, for queries of one user at a time.

    Args:
        paths: of the dataset; the sequences file stays open.

    Raises:
        MissingArtefactError: the sequences stage has not run.
        ArtefactError: the file is damaged.
    """

    def __init__(self, paths: DatasetPaths) -> None:
        self._file = database.ReadOnlyDatabase(paths.sequences)

    def of(self, user: str) -> tuple[list[str], list[int]]:
        """Return the items, oldest first, and the time of each (ms since 1970); both empty for an unknown user.

        Raises:
            ArtefactError: the file is damaged.
        """
        query = 'SELECT item, "timestamp" FROM interactions WHERE "user" = $user ORDER BY timestamp, position'
        rows = self._file.rows(query, {"user": clean_id(user)})
        return [item for item, _ in rows], [time for _, time in rows]

    def find_users(self, start: str, count: int) -> list[str]:
        """Return the first `count` users, in order, whose id begins with `start`."""
        query = (
            'SELECT DISTINCT "user" FROM interactions WHERE starts_with("user", $start) ORDER BY "user" LIMIT $count'
        )
        return [user for (user,) in self._file.rows(query, {"start": start, "count": count})]


def catalogue_digest(item_ids: pl.Series) -> str:
    """Return the SHA-256 of a catalogue's ids in their order: artefacts with item indices belong to one catalogue."""
    return hashlib.sha256(json.dumps(item_ids.to_list()).encode()).hexdigest()


def read_cuts(paths: DatasetPaths) -> dict[str, int]:
    """Return the starts of validation and test under the time split, in milliseconds since 1970; else empty.

    Raises:
        MissingArtefactError: the sequences stage has not run.
        ArtefactError: the file is damaged.
    """
    with database.open_read_only(paths.sequences) as connection:
        return splits.cuts(connection)


def read_all_histories(paths: DatasetPaths) -> pl.DataFrame:
    """Return all interactions of each user, held-out ones too: columns `user`, `items`, `timestamps`, sorted by user.

    Raises:
        MissingArtefactError: the sequences stage has not run.
        ArtefactError: the file is damaged.
    """
    query = """SELECT "user", list(item ORDER BY ordinal) AS items, list("timestamp" ORDER BY ordinal) AS timestamps
        FROM interactions GROUP BY "user" ORDER BY "user" """
    with database.open_read_only(paths.sequences) as connection:
        histories: pl.DataFrame = connection.sql(query).pl()
    return histories


def read_sequences(paths: DatasetPaths, split: str) -> pl.DataFrame:
    """Return the sequences of a split, one row per user, sorted by user: `SEQUENCE_SCHEMA` without `split`.

    Raises:
        MissingArtefactError: the sequences stage has not run.
        ArtefactError: the file is damaged.
    """
    assert split in SPLITS, f"{split!r} is not a split; splits are {', '.join(SPLITS)}"
    with database.open_read_only(paths.sequences) as connection:
        return _read_sequences(connection, split)


def read_measured_sequences(paths: DatasetPaths) -> pl.DataFrame:
    """Return the test sequences of the users that methods rank items for: `sequences.test_users` of them, or all.

    The columns and the order are those of `read_sequences`.

    Raises:
        MissingArtefactError: the sequences stage has not run.
        ArtefactError: the file is damaged.
    """
    with database.open_read_only(paths.sequences) as connection:
        drawn = connection.execute(
            "FROM duckdb_tables() WHERE database_name = current_database() AND table_name = 'measured_users'"
        ).fetchall()
        return _read_sequences(connection, TEST, 'AND "user" IN (FROM measured_users)' if drawn else "")


def _read_sequences(connection: duckdb.DuckDBPyConnection, split: str, condition: str = "") -> pl.DataFrame:
    query = f"""SELECT "user", items, timestamps, tied FROM sequences WHERE split = $split {condition}
        ORDER BY "user" """  # noqa: S608
    sequences: pl.DataFrame = connection.sql(query, params={"split": split}).pl()
    return sequences
