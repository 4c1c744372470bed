"""The manifest of photos, what came of each URL, and what it leaves a run to do.

Catalogue, manifest and journal may have millions of rows. They stay in their files, and DuckDB joins
them there; rows come out as a stream.
"""

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

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
_COLUMNS: Final = ", ".join(f"{name}: '{_SQL_TYPES[type(kind)]}'" for name, kind in IMAGE_SCHEMA.items())

#: The newest outcome of each item and URL: the manifest's rows have line 0. A window over nothing follows the file,
#: and the line with the journal's settings is a row of nulls.
_WANTED: Final = """
WITH wanted AS (SELECT item, image_url AS url FROM read_parquet({items}) WHERE image_url IS NOT NULL),
told AS (
    {kept}
    SELECT {names}, row_number() OVER () AS line
    FROM read_json({journal}, format = 'newline_delimited', columns = {{{columns}}})
),
known AS (FROM told WHERE item IS NOT NULL QUALIFY row_number() OVER (PARTITION BY item, url ORDER BY line DESC) = 1)
SELECT {names} FROM wanted LEFT JOIN known USING (item, url)
"""
_KEPT: Final = "SELECT {names}, 0 AS line FROM read_parquet({manifest}) WHERE status = 'ok' UNION ALL"


def known(paths: DatasetPaths, size: int) -> Iterator[tuple[str, str, Outcome | None]]:
    """Item and URL of every photo that is wanted, with what an earlier run made of it.

    That is, from the journal, whatever a killed run noted, else from the manifest a photo of the same
    size; failures of a whole run are to be tried again.

    Raises:
        MissingArtefactError: the catalogue has not been made.
        ArtefactError: it or the manifest is damaged.
    """
    query = _query(paths, with_manifest=_size(paths) == str(size))
    for row in _rows(query):
        outcome = Outcome(**dict(zip(IMAGE_SCHEMA, row, strict=True)))
        yield outcome.item, outcome.url, outcome if outcome.status else None


def write(paths: DatasetPaths, size: int, target: Path) -> None:
    """Write to `target` what the journal says of every photo that is wanted, sorted by item. Schema: `IMAGE_SCHEMA`."""
    options = f"FORMAT parquet, COMPRESSION zstd, KV_METADATA {{{literal(SIZE_KEY)}: {literal(size)}}}"
    with database.querying() as connection:
        query = _query(paths, with_manifest=False)
        connection.execute(f"COPY ({query} ORDER BY item) TO {literal(target)} ({options})")


def _query(paths: DatasetPaths, with_manifest: bool) -> str:
    names = ", ".join(IMAGE_SCHEMA)
    manifest = literal(glob.escape(str(paths.images_manifest)))
    return _WANTED.format(
        items=literal(database.parquet(paths.items)),
        kept=_KEPT.format(names=names, manifest=manifest) if with_manifest else "",
        journal=literal(glob.escape(str(paths.images_journal))),
        names=names,
        columns=_COLUMNS,
    )


def _rows(query: str) -> Iterator[tuple[Any, ...]]:
    with database.querying() as connection:
        result = connection.execute(query)
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
    return (item for (item,) in _rows(query))


def counts(manifest: pl.LazyFrame) -> pl.DataFrame:
    """How many photos of each status and reason, the most first."""
    counted = manifest.group_by("status", "reason").agg(pl.len().alias("photos"))
    return counted.sort(["photos", "status", "reason"], descending=[True, True, False]).collect()
