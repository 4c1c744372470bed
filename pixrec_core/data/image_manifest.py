"""The manifest of photos, what came of each URL, and what it leaves a run to do.

Catalogue, manifest and journal may have millions of rows. They stay in their files, and DuckDB joins
them there; rows come out as a stream.
"""

import glob
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import duckdb
import polars as pl

from pixrec_core import files
from pixrec_core.data import database
from pixrec_core.data.database import literal
from pixrec_core.data.image_journal import OK, Outcome
from pixrec_core.errors import ArtefactError
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import IMAGE_SCHEMA

SIZE_KEY: Final = "pixrec.size"  # in the file's metadata: the setting that its photos were made with

_BATCH: Final = 512
_SQL_TYPES: Final = {pl.String: "VARCHAR", pl.Int32: "INTEGER", pl.Int64: "BIGINT"}
_COLUMNS: Final = {name: _SQL_TYPES[type(kind)] for name, kind in IMAGE_SCHEMA.items()}

#: Rows in the order in which they were told; the line with the journal's settings is a row of nulls.
_TOLD: Final = f"CREATE TEMP TABLE told ({', '.join(f'{name} {kind}' for name, kind in _COLUMNS.items())})"
_KEPT: Final = "INSERT INTO told BY NAME SELECT * FROM read_parquet($file) WHERE status = 'ok'"
_NOTED: Final = f"""
INSERT INTO told BY NAME SELECT * FROM read_json($file, format = 'newline_delimited', columns = {_COLUMNS})
WHERE item IS NOT NULL
"""  # noqa: S608
#: Of each item and URL the newest stays. In steps, since each of them spills to disk and a window over all does not.
_NEWEST: Final = "DELETE FROM told WHERE rowid NOT IN (SELECT max(rowid) FROM told GROUP BY item, url)"
_WANTED: Final = f"""
SELECT {", ".join(_COLUMNS)}
FROM (SELECT item, image_url AS url FROM read_parquet({{items}}) WHERE image_url IS NOT NULL)
LEFT JOIN told USING (item, url)
WHERE hash(item) % $shares = $share
"""  # noqa: S608


def known(
    paths: DatasetPaths, size: int, journals: Sequence[Path], share: int = 0, shares: int = 1
) -> Generator[tuple[str, str, Outcome | None]]:
    """Item and URL of every photo that is wanted, with what an earlier run made of it.

    That is, from the journals, whatever a killed run noted, else from the manifest a photo of the same
    size; failures of a whole run are to be tried again.

    Args:
        paths: of the dataset.
        size: setting that photos are made with.
        journals: of the run under way, later ones win.
        share: which part of the photos, from 0.
        shares: parts that they fall into, by a hash of their item.

    Raises:
        MissingArtefactError: the catalogue has not been made.
        ArtefactError: it or the manifest is damaged.
    """
    with _told(paths, journals, with_manifest=_size(paths) == str(size)) as connection:
        for row in _rows(connection, _wanted(paths), {"share": share, "shares": shares}):
            outcome = Outcome(**dict(zip(_COLUMNS, row, strict=True)))
            yield outcome.item, outcome.url, outcome if outcome.status else None


def write(paths: DatasetPaths, size: int, target: Path) -> None:
    """Write to `target` what the journals say of every photo that is wanted, sorted by item. Schema: `IMAGE_SCHEMA`."""
    metadata = f"KV_METADATA {{{literal(SIZE_KEY)}: {literal(size)}}}"
    with _told(paths, paths.images_journals, with_manifest=False) as connection:
        connection.execute(
            f"COPY ({_wanted(paths)} ORDER BY item) TO {literal(target)} "
            f"(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 20_480, {metadata})",
            {"share": 0, "shares": 1},
        )


@contextmanager
def _told(paths: DatasetPaths, journals: Sequence[Path], with_manifest: bool) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with a table `told`: the newest outcome of each item and URL."""
    with database.querying(database.SMALL) as connection:
        connection.execute(_TOLD)
        if with_manifest:
            connection.execute(_KEPT, {"file": glob.escape(str(paths.images_manifest))})
        for journal in journals:
            connection.execute(_NOTED, {"file": glob.escape(str(journal))})
        connection.execute(_NEWEST)
        yield connection


def _wanted(paths: DatasetPaths) -> str:
    return _WANTED.format(items=literal(database.parquet(paths.items)))


def _rows(
    connection: duckdb.DuckDBPyConnection, query: str, parameters: Mapping[str, int] = MappingProxyType({})
) -> Iterator[tuple[Any, ...]]:
    result = connection.execute(query, dict(parameters))
    while batch := result.fetchmany(_BATCH):
        yield from batch


def _size(paths: DatasetPaths) -> str | None:
    """The size of the manifest's photos; None where it says none or there is none."""
    path = paths.images_manifest
    try:
        return pl.read_parquet_metadata(path).get(SIZE_KEY) if path.exists() else None
    except pl.exceptions.PolarsError as error:
        raise _damaged(path, error) from error


def read(paths: DatasetPaths) -> pl.DataFrame:
    """What came of each URL, as the last whole run left it. Schema: `IMAGE_SCHEMA`.

    Raises:
        MissingArtefactError: no run has ended yet.
        ArtefactError: the file is damaged.
    """
    path = files.require(paths.images_manifest)
    try:
        return pl.read_parquet(path, schema=IMAGE_SCHEMA)
    except pl.exceptions.PolarsError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ArtefactError:
    return ArtefactError(f"{path} is no manifest of photos ({error}); remove it to fetch them again")


def stored(manifest: Path) -> Iterator[str]:
    """Items of a manifest that have a photo."""
    query = f"SELECT item FROM read_parquet({literal(glob.escape(str(manifest)))}) WHERE status = '{OK}'"  # noqa: S608
    with database.querying(database.SMALL) as connection:
        yield from (item for (item,) in _rows(connection, query))


def counts(manifest: pl.LazyFrame) -> pl.DataFrame:
    """How many photos of each status and reason, the most first."""
    counted = manifest.group_by("status", "reason").agg(pl.len().alias("photos"))
    return counted.sort(["photos", "status", "reason"], descending=[True, True, False]).collect()
