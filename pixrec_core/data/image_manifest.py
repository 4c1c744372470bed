"""Outcomes of photos: the journal of a running download, and the manifest of a finished one.

The journal is a JSON lines file: the settings in its first line, then one outcome per line in the manifest's columns.
A failed try that will be repeated is logged too, with status "trying", so that a resumed run counts on from it and
ends with the manifest of an uninterrupted run.

Catalogue, manifest and journal may have millions of rows, so DuckDB joins the files and rows are streamed.
"""

import glob
import json
import logging
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import duckdb
import polars as pl
from pydantic import TypeAdapter

from pixrec_core import files
from pixrec_core.data import database
from pixrec_core.data.database import literal
from pixrec_core.data.photos import CRASHES, TOO_LARGE, TOO_SLOW
from pixrec_core.errors import ArtefactError
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import IMAGE_SCHEMA
from pixrec_core.settings import ImageSettings

OK: Final = "ok"
FAILED: Final = "failed"
TRYING: Final = "trying"
REPLACED: Final = "replaced"  # reason of a local photo whose file has changed
#: Settings in the manifest's Parquet metadata: its outcomes hold only under the same ones.
SIZE_KEY: Final = "pixrec.size"
MEMORY_KEY: Final = "pixrec.decode_memory_mb"  # photos that exceeded the limits of decoding

#: Reasons of failures that the same bytes would repeat at great cost.
FINAL_REASONS: Final = (TOO_SLOW, TOO_LARGE, CRASHES)

_BATCH: Final = 512
_SQL_TYPES: Final = {pl.String: "VARCHAR", pl.Int32: "INTEGER", pl.Int64: "BIGINT", pl.List: "VARCHAR[]"}
_COLUMNS: Final = {name: _SQL_TYPES[type(kind)] for name, kind in IMAGE_SCHEMA.items()}

#: Rows in the order of their logging. The journal's line of settings becomes a row of nulls, which is left out.
_CREATE: Final = f"CREATE TEMP TABLE outcomes ({', '.join(f'{name} {kind}' for name, kind in _COLUMNS.items())})"
_READ_MANIFEST: Final = "INSERT INTO outcomes BY NAME SELECT * FROM read_parquet($file) WHERE status = 'ok'"
_READ_FINAL: Final = "INSERT INTO outcomes BY NAME SELECT * FROM read_parquet($file) WHERE reason IN $reasons"
_READ_JOURNAL: Final = f"""
INSERT INTO outcomes BY NAME SELECT * FROM read_json($file, format = 'newline_delimited', columns = {_COLUMNS})
WHERE item IS NOT NULL
"""  # noqa: S608
#: The last outcome of each item and URL stays. An aggregation spills to disk, which a window function does not.
_KEEP_LAST: Final = "DELETE FROM outcomes WHERE rowid NOT IN (SELECT max(rowid) FROM outcomes GROUP BY item, url)"
_CATALOGUE: Final = f"""
SELECT {", ".join(_COLUMNS)}{{more}}
FROM (SELECT item, image_url AS url, other_image_urls AS others FROM read_parquet({{items}})
    WHERE image_url IS NOT NULL)
LEFT JOIN outcomes USING (item, url)
WHERE hash(item) % $partitions = $partition
"""  # noqa: S608

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One row of the manifest; `IMAGE_SCHEMA` has the units."""

    item: str
    url: str
    status: str
    attempts: int
    reason: str | None = None
    sha256: str | None = None
    width: int | None = None
    height: int | None = None
    bytes: int | None = None
    tried_urls: list[str] | None = None

    def holds_for(self, others: list[str]) -> bool:
        """Whether a download that tries `url` and then `others` until a photo works would try the same URLs."""
        if self.status == TRYING:
            return True
        if self.tried_urls is None:  # of an older version; a photo whose links are dead now would be lost
            return self.status == OK or not others
        tried = [self.url, *others][: len(self.tried_urls) if self.status == OK else None]
        return self.tried_urls == tried


_LINE: Final = TypeAdapter(Outcome)


class Journal(AbstractContextManager["Journal"]):
    """An append-only file of outcomes, to which several threads may write."""

    def __init__(self, path: Path, settings: ImageSettings) -> None:
        """Open the journal and keep the valid lines of a killed run.

        If that run had other settings, its failures are left out, as they may succeed now, and if `size` differs, its
        stored photos too. Marks of replaced photos stay: the snapshot already has the new files.
        """
        self._settings = settings
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as temporary, temporary.open("wb") as file:
            file.write(settings.model_dump_json().encode() + b"\n")
            file.writelines(_valid_lines(path, settings))
        self._file = path.open("ab")

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, outcome: Outcome) -> None:
        """Write an outcome; it has reached the operating system when the call returns."""
        line = _LINE.dump_json(outcome) + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()

    def move_from(self, path: Path) -> None:
        """Append the outcomes of another journal and remove it."""
        with self._lock:
            self._file.writelines(_valid_lines(path, self._settings))
            self._file.flush()
        files.remove(path)


def _valid_lines(path: Path, settings: ImageSettings) -> Iterator[bytes]:
    """Lines of a journal that a resumed run can use, up to the first damaged one; streamed, there may be millions."""
    if not path.exists():
        return
    try:
        with path.open("rb") as file:
            before = json.loads(file.readline())
            same, same_size = before == settings.model_dump(mode="json"), before["size"] == settings.size
            for line in file:
                if line.endswith(b"\n"):  # a kill can truncate the last line
                    outcome = _LINE.validate_json(line)
                    is_replaced = outcome.status == TRYING and outcome.reason == REPLACED
                    if same or (same_size and outcome.status == OK) or is_replaced:
                        yield line
    except (ValueError, TypeError, KeyError) as error:
        log.warning("warning: %s is damaged (%s); photos after the damage are fetched again", path, error)


def read_wanted(
    paths: DatasetPaths, settings: ImageSettings, journals: Sequence[Path], partition: int = 0, partitions: int = 1
) -> Generator[tuple[str, str, Outcome | None, list[str]]]:
    """Yield item, URL, previous outcome and other URLs of every photo that the catalogue names.

    The outcome comes from the journals, else from the manifest if its photos have the same size. Of the manifest's
    failures only those of `FINAL_REASONS` are included; a new run tries the others again. An outcome is left out if
    other URLs of the item would be tried now.

    Args:
        paths: of the dataset.
        settings: of the present run.
        journals: of the present run; later ones take precedence.
        partition: which part of the photos, from 0.
        partitions: number of parts; a hash of the item selects the part.

    Raises:
        MissingArtefactError: the catalogue has not been built.
        ArtefactError: the catalogue or the manifest is damaged.
    """
    with _outcomes(paths, journals, settings) as connection:
        parameters = {"partition": partition, "partitions": partitions}
        for *row, others in _rows(connection, _catalogue(paths, ", coalesce(others, [])"), parameters):
            outcome = Outcome(**dict(zip(_COLUMNS, row, strict=True)))
            is_valid = outcome.status and outcome.holds_for(others)
            yield outcome.item, outcome.url, outcome if is_valid else None, others


def write_manifest(paths: DatasetPaths, settings: ImageSettings, target: Path) -> None:
    """Write the journals' outcomes of the catalogue's photos to `target`, sorted by item. Schema: `IMAGE_SCHEMA`."""
    entries = (f"{literal(key)}: {literal(value)}" for key, value in _metadata(settings).items())
    metadata = f"KV_METADATA {{{', '.join(entries)}}}"
    with _outcomes(paths, paths.images_journals) as connection:
        connection.execute(
            f"COPY ({_catalogue(paths)} ORDER BY item) TO {literal(target)} "
            f"(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 20_480, {metadata})",
            {"partition": 0, "partitions": 1},
        )


@contextmanager
def _outcomes(
    paths: DatasetPaths, journals: Sequence[Path], manifest_under: ImageSettings | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with a table `outcomes`: the last outcome of each item and URL.

    The outcomes of the manifest that hold under the settings `manifest_under` are included.
    """
    with database.connect_in_memory(database.LOW_MEMORY) as connection:
        connection.execute(_CREATE)
        before, now = _stored_metadata(paths), _metadata(manifest_under) if manifest_under else {}
        if SIZE_KEY in now and before.get(SIZE_KEY) == now[SIZE_KEY]:
            manifest = {"file": glob.escape(str(paths.images_manifest))}
            connection.execute(_READ_MANIFEST, manifest)
            if before.get(MEMORY_KEY) == now[MEMORY_KEY]:
                connection.execute(_READ_FINAL, manifest | {"reasons": FINAL_REASONS})
        for journal in journals:
            connection.execute(_READ_JOURNAL, {"file": glob.escape(str(journal))})
        connection.execute(_KEEP_LAST)
        yield connection


def _catalogue(paths: DatasetPaths, more: str = "") -> str:
    return _CATALOGUE.format(items=literal(database.parquet_path(paths.items)), more=more)


def _rows(
    connection: duckdb.DuckDBPyConnection, query: str, parameters: Mapping[str, int] = MappingProxyType({})
) -> Iterator[tuple[Any, ...]]:
    result = connection.execute(query, dict(parameters))
    while batch := result.fetchmany(_BATCH):
        yield from batch


def _metadata(settings: ImageSettings) -> dict[str, str]:
    return {SIZE_KEY: str(settings.size), MEMORY_KEY: str(settings.decode_memory_mb)}


def _stored_metadata(paths: DatasetPaths) -> dict[str, str]:
    """The metadata of the manifest; empty if there is none."""
    path = paths.images_manifest
    try:
        return pl.read_parquet_metadata(path) if path.exists() else {}
    except pl.exceptions.PolarsError as error:
        raise _damaged(path, error) from error


def read_manifest(paths: DatasetPaths) -> pl.DataFrame:
    """Outcome of each photo in the last finished run. Schema: `IMAGE_SCHEMA`.

    Raises:
        MissingArtefactError: no run has finished yet.
        ArtefactError: the file is damaged.
    """
    path = files.require(paths.images_manifest)
    try:
        return pl.read_parquet(path, schema=IMAGE_SCHEMA, missing_columns="insert", glob=False)
    except pl.exceptions.PolarsError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ArtefactError:
    return ArtefactError(f"{path} is not a manifest of photos ({error}); remove it and run `images` again")


def stored_items(manifest: Path) -> Iterator[str]:
    """Items of a manifest that have a stored photo."""
    query = f"SELECT item FROM read_parquet({database.file_literal(manifest)}) WHERE status = '{OK}'"  # noqa: S608
    with database.connect_in_memory(database.LOW_MEMORY) as connection:
        yield from (item for (item,) in _rows(connection, query))


def count_outcomes(manifest: pl.LazyFrame) -> pl.DataFrame:
    """Number of photos per status and reason, largest first."""
    counted = manifest.group_by("status", "reason").agg(pl.len().alias("photos"))
    return counted.sort(["photos", "status", "reason"], descending=[True, True, False]).collect()
