"""From interactions to one validated DuckDB file of sequences, split by `data.splits`.

A user's order is (timestamp, position): many interactions share their time with another, and the
line number at least makes their order the same in every run. A `train` of one item has no target,
but its item still counts towards popularity. A user who is too short to be tested has only a `train`.

A user with a history before a held-out split, and at least one interaction in it, has one target
there: the first. It is what comes next after all that was known, which is what a model is asked;
later ones would be asked with a history that stops before them, and more than one would let busy
users outweigh the others in metrics of users. The history of a test target has all that lies
before the test split, validation included.

The catalogue that rankings choose from is every item with at least one kept interaction; an item
bought in a held-out place alone is a cold candidate, with `train_count` 0. Items that nobody bought
would dilute what is measured, and are candidates only where the settings want them: a shop's new
products. An item's text is the metadata's, whatever the split.
"""

from typing import Final

import duckdb
import polars as pl

from pixrec_core import files
from pixrec_core.data import contract, database, splits
from pixrec_core.data.profile import profile_sequences
from pixrec_core.data.user_shards import Shards, open_shards, user_ranges
from pixrec_core.engine import LOCAL, Engine
from pixrec_core.errors import ContractError
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import CATALOGUE_SCHEMA, SPLITS
from pixrec_core.settings import SequenceSettings
from pixrec_core.stages import Stats

_PHOTOS: Final = "CREATE TEMP VIEW photographed AS SELECT item FROM read_parquet({file}) WHERE status = 'ok'"

#: Item ids are many and short, so to compress them costs more than to make the lists.
_SEQUENCES: Final = """
CREATE TABLE sequences (
    split VARCHAR, "user" VARCHAR, items VARCHAR[] USING COMPRESSION uncompressed, moments BIGINT[], tied BOOLEAN
)
"""
#: To sort a user's few structs is far cheaper than `list(... ORDER BY ...)` of texts.
_WALKS: Final = """
CREATE OR REPLACE TEMP TABLE walks AS
    SELECT
        "user",
        list_sort(list({{place: place, item: item, timestamp: timestamp, is_train: split = 'train'}})) AS walk,
        count(*) FILTER (split = 'train') AS trained,
        count(*) FILTER (split IN ('train', 'history')) AS early,
        count(*) FILTER (split <> 'test') AS before_test
    FROM interactions
    WHERE {some_users}
    GROUP BY "user"
    ORDER BY "user"
"""
#: Splits follow each other in a user's order, so a history is the first so many places.
_TRAIN: Final = """
SELECT 'train' AS split, "user", false AS tied,
    CASE WHEN trained = early THEN walk[:early] ELSE list_filter(walk, lambda each: each.is_train) END AS part
FROM walks
WHERE trained > 0
"""
_HELD_OUT: Final = """
SELECT '{split}' AS split, "user", walk[:{before} + 1] AS part, walk[{before} + 1].timestamp AS moment,
    coalesce(moment IN (walk[{before}].timestamp, walk[{before} + 2].timestamp), false) AS tied
FROM walks
WHERE {before} > 0 AND {before} < {upto}
"""
_PARTS: Final = (
    _TRAIN,
    _HELD_OUT.format(split="validation", before="early", upto="before_test"),
    _HELD_OUT.format(split="test", before="before_test", upto="len(walk)"),
)
_FILLED: Final = """
INSERT INTO sequences
    SELECT split, "user", list_transform(part, lambda each: each.item),
        list_transform(part, lambda each: each.timestamp), tied
    FROM ({part})
"""
#: Of what is brought from shards, as it is inserted above.
_ORDER: Final = f'list_position({list(SPLITS)}, split), "user"'

_COUNTED: Final = """
CREATE TEMP TABLE counted AS
    SELECT item, count(*) FILTER (split = 'train') AS train_count FROM interactions GROUP BY item
"""
_ITEMS: Final = """
CREATE TABLE items AS
    SELECT all_items.*, item IN (SELECT item FROM photographed) AS has_image, coalesce(train_count, 0) AS train_count
    FROM all_items {which} JOIN counted USING (item)
    ORDER BY item
"""


def build_sequences(settings: SequenceSettings, paths: DatasetPaths, engine: Engine = LOCAL) -> Stats:
    """Make `sequences.duckdb`, and write what its validation found.

    The workers of an engine filter, label and list the interactions of a part of the users each; this process adds up
    what is of all users, writes the one file and measures it.

    Returns:
        The profile; counts of what was left out and why, those of validation and test under their
        names.

    Raises:
        MissingArtefactError: items, interactions or images have not been made.
        ArtefactError: one of them is damaged.
        EngineError: the engine failed.
        SettingsError: the time split finds no cut with interactions enough on both sides.
        ContractError: the new file breaks the data contract. It is kept as
            `sequences.rejected.duckdb`; the old one stays in place.
    """
    files.remove(paths.sequences_rejected)
    with files.replacing(paths.sequences) as temporary:
        with database.create_database(temporary) as connection, open_shards(connection, paths, engine) as shards:
            left_out = _fill(shards, settings, paths)
        with database.open_read_only(temporary) as connection:
            measured, held_out, cuts = (
                profile_sequences(connection),
                splits.account(connection),
                splits.cuts(connection),
            )
        failed = contract.check_profile("sequences", measured, paths)
        if failed:
            temporary.replace(paths.sequences_rejected)
            raise ContractError(_refusal(failed, left_out, paths))
    return {
        "split": settings.split,
        "cuts": {split: splits.iso(start) for split, start in cuts.items()},
        "profile": contract.informative_metrics("sequences", measured),
        **left_out,
        "users_left_out": left_out["users_seen"] - measured["users"],
        **held_out,
    }


def _fill(shards: Shards, settings: SequenceSettings, paths: DatasetPaths) -> dict[str, int]:
    """Write all tables; returns what there was before filtering, and what fell to each filter."""
    connection = shards.connection
    connection.execute(_PHOTOS.format(file=database.literal(database.parquet_path(paths.images_manifest))))
    ((items,),) = connection.execute("SELECT count(*) FROM all_items").fetchall()
    lost = splits.fill(shards, settings)
    shards.map(_list, writes=["sequences"])
    shards.gather("sequences", _SEQUENCES, _ORDER, ranges_of="interactions")
    connection.execute(_COUNTED)
    connection.execute(_ITEMS.format(which="LEFT" if settings.include_cold_items else "INNER"))
    ((bought,),) = connection.execute("SELECT count(*) FROM counted").fetchall()
    return {"items_seen": items, "items_never_bought": items - bought, **lost}


def _list(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute(_SEQUENCES)
    for some_users in user_ranges(connection, "interactions"):
        connection.execute(_WALKS.format(some_users=some_users))
        for part in _PARTS:
            connection.execute(_FILLED.format(part=part))


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


def read_items(paths: DatasetPaths) -> pl.DataFrame:
    """The catalogue: `CATALOGUE_SCHEMA`, one row an item, sorted by item.

    Raises:
        MissingArtefactError: the sequences stage has not run.
        ArtefactError: the file is damaged.
    """
    with database.open_read_only(paths.sequences) as connection:
        catalogue: pl.DataFrame = connection.sql("SELECT * FROM items ORDER BY item").pl()
    return catalogue.select(CATALOGUE_SCHEMA.names())


class Histories:
    """All items of users' kept interactions, whatever their split, asked for one user at a time.

    Args:
        paths: of the dataset; its file stays open.

    Raises:
        MissingArtefactError: the sequences stage has not run.
        ArtefactError: the file is damaged.
    """

    def __init__(self, paths: DatasetPaths) -> None:
        self._file = database.ReadOnlyDatabase(paths.sequences)

    def of(self, user: str) -> list[str]:
        """Oldest first; none of an unknown user.

        Raises:
            ArtefactError: the file is damaged.
        """
        query = 'SELECT item FROM interactions WHERE "user" = $user ORDER BY place'
        return [item for (item,) in self._file.rows(query, {"user": user})]


def read_cuts(paths: DatasetPaths) -> dict[str, int]:
    """First instant of validation and of test under the time split, in the unit of `timestamp`; else empty.

    Raises:
        MissingArtefactError: the sequences stage has not run.
        ArtefactError: the file is damaged.
    """
    with database.open_read_only(paths.sequences) as connection:
        return splits.cuts(connection)


def read_sequences(paths: DatasetPaths, split: str) -> pl.DataFrame:
    """Sequences of one split, one row a user, sorted by user: `SEQUENCE_SCHEMA` without `split`.

    Raises:
        MissingArtefactError: the sequences stage has not run.
        ArtefactError: the file is damaged.
    """
    assert split in SPLITS, f"{split!r} is no split; there are {', '.join(SPLITS)}"
    query = 'SELECT "user", items, moments, tied FROM sequences WHERE split = $split ORDER BY "user"'
    with database.open_read_only(paths.sequences) as connection:
        sequences: pl.DataFrame = connection.sql(query, params={"split": split}).pl()
    return sequences
