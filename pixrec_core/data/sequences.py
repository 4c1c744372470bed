"""From interactions to one validated DuckDB file of sequences, split leave-one-out.

A user's order is (timestamp, position): many interactions share their time with another, and the
line number at least makes their order the same in every run. Of n items the last is the test
target and the last but one the validation target: `test` lists all n, `validation` n - 1, `train`
n - 2. A `train` of one item has no target, but its item still counts towards popularity.

The catalogue that rankings choose from is every item with at least one kept interaction. Items
that nobody bought would only dilute it; an item bought in a held-out place alone stays, as a cold
candidate with `train_count` 0. Its text is the metadata's, whatever the split.
"""

import logging
from typing import Any, Final

import duckdb
import polars as pl

from pixrec_core import files
from pixrec_core.data import contract, database, filters
from pixrec_core.data.profile import profile
from pixrec_core.errors import ContractError
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import CATALOGUE_SCHEMA, SPLITS
from pixrec_core.settings import SequenceSettings
from pixrec_core.stages import Stats

_log: Final = logging.getLogger(__name__)

_METADATA: Final = "CREATE TEMP TABLE metadata AS SELECT * FROM read_parquet($file)"
_PHOTOS: Final = "CREATE TEMP TABLE photographed AS SELECT item FROM read_parquet($file) WHERE status = 'ok'"
_KEPT: Final = """
CREATE TEMP TABLE kept AS SELECT "user", item, timestamp, rating, position FROM read_parquet($file)
"""

_TABLES: Final = """
CREATE TABLE interactions AS
    SELECT *, row_number() OVER (PARTITION BY "user" ORDER BY timestamp, position) AS place
    FROM kept
    ORDER BY "user", place;

CREATE TABLE sequences AS
    WITH whole AS (
        SELECT "user", list(item ORDER BY place) AS walk, list(timestamp ORDER BY place) AS times
        FROM interactions
        GROUP BY "user"
    )
    SELECT split, "user", walk[:n] AS items, coalesce(times[n] = times[n - 1], false) AS tied
    FROM (
        SELECT *, len(walk) - held_out AS n
        FROM whole CROSS JOIN (VALUES ('train', 2), ('validation', 1), ('test', 0)) AS splits (split, held_out)
    )
    ORDER BY held_out DESC, "user";

CREATE TABLE items AS
    WITH bought AS (SELECT DISTINCT item FROM interactions),
    train_counts AS (
        SELECT item, count(*) AS n
        FROM (SELECT unnest(items) AS item FROM sequences WHERE split = 'train')
        GROUP BY item
    )
    SELECT metadata.*, item IN (SELECT item FROM photographed) AS has_image, coalesce(n, 0) AS train_count
    FROM metadata SEMI JOIN bought USING (item) LEFT JOIN train_counts USING (item)
    ORDER BY item;
"""

#: What the profile tells that belongs in the stage's statistics.
_REPORTED: Final = (
    "users",
    "items",
    "interactions",
    "density",
    "image_coverage",
    "share_tied_test",
    "share_cold_test_targets",
    "share_repeat_test_targets",
    "history_min",
    "history_median",
    "history_p90",
    "history_max",
)


def build(settings: SequenceSettings, paths: DatasetPaths) -> Stats:
    """Make `sequences.duckdb`, and `contract.json` with what its validation found.

    Returns:
        Counts of what was kept and of what was left out and why; shares (0 to 1); quantiles of
        the history length of test users, in items.

    Raises:
        MissingArtefactError: items, interactions or images have not been made.
        ArtefactError: one of them is damaged.
        ContractError: the new file breaks the data contract. It is kept as
            `sequences.rejected.duckdb`; the old one stays in place.
    """
    files.remove(paths.sequences_rejected)
    with files.replacing(paths.sequences) as temporary:
        with database.writing(temporary) as connection:
            left_out = _fill(connection, settings, paths)
        with database.reading(temporary) as connection:
            measured = profile(connection)
        results = contract.validate(measured)
        contract.write(results, paths)
        if contract.broken(results):
            temporary.replace(paths.sequences_rejected)
            raise ContractError(_refusal(contract.broken(results), left_out, paths))
    for result in results:
        if not result.passed:
            _log.warning("data contract: %s", result)
    return _stats(measured, left_out)


def _fill(connection: duckdb.DuckDBPyConnection, settings: SequenceSettings, paths: DatasetPaths) -> dict[str, int]:
    """Write the three tables; returns what there was before filtering, and what fell to each filter."""
    inputs = {_METADATA: paths.items, _PHOTOS: paths.images_manifest, _KEPT: paths.interactions}
    for statement, path in inputs.items():
        connection.execute(statement, {"file": database.parquet(path)})
    row = connection.execute('SELECT count(DISTINCT "user"), (SELECT count(*) FROM metadata) FROM kept').fetchone()
    assert row is not None, "an aggregate gives one row"
    deleted = filters.apply(connection, settings)
    connection.execute(_TABLES)
    return {"users_seen": row[0], "items_seen": row[1], **deleted}


def _refusal(failed: list[contract.CheckResult], left_out: dict[str, int], paths: DatasetPaths) -> str:
    counts = ", ".join(f"{name} {n:,}" for name, n in left_out.items())
    return "\n  ".join(
        [
            f"the sequences made from {paths.items} and {paths.interactions} break the data contract:",
            *map(str, failed),
            f"left out before: {counts}",
            f"mend the source or loosen [sequences] in pixrec.toml; the refused file is {paths.sequences_rejected}",
        ]
    )


def _stats(measured: dict[str, Any], left_out: dict[str, int]) -> Stats:
    gone = {
        "users_too_short": left_out["users_seen"] - measured["users"],
        "items_never_bought": left_out["items_seen"] - measured["items"],
    }
    return {name: measured[name] for name in _REPORTED} | left_out | gone


def read_items(paths: DatasetPaths) -> pl.DataFrame:
    """The catalogue: `CATALOGUE_SCHEMA`, one row an item, sorted by item.

    Raises:
        MissingArtefactError: the sequences stage has not run.
        ArtefactError: the file is damaged.
    """
    with database.reading(paths.sequences) as connection:
        catalogue: pl.DataFrame = connection.sql("SELECT * FROM items ORDER BY item").pl()
    return catalogue.select(CATALOGUE_SCHEMA.names())


def read_sequences(paths: DatasetPaths, split: str) -> pl.DataFrame:
    """Sequences of one split: columns `user`, `items` (oldest first) and `tied`, one row a user, sorted by user.

    Raises:
        MissingArtefactError: the sequences stage has not run.
        ArtefactError: the file is damaged.
    """
    assert split in SPLITS, f"{split!r} is no split; there are {', '.join(SPLITS)}"
    query = 'SELECT "user", items, tied FROM sequences WHERE split = $split ORDER BY "user"'
    with database.reading(paths.sequences) as connection:
        sequences: pl.DataFrame = connection.sql(query, params={"split": split}).pl()
    return sequences
