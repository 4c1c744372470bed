"""DuckDB the way PixRec uses it: one writer under a temporary name, then readers only.

Two processes that open one file for writing fail at once, so no file is written twice: a writer
makes a new one that takes the old one's place, and a reader never locks anybody out.
"""

import glob
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import duckdb

from pixrec_core import files
from pixrec_core.errors import ArtefactError

_THREADS: Final = min(os.cpu_count() or 1, 8)

Config = dict[str, str | bool | int | float | list[str]]  # as DuckDB's own stubs have it

#: Of one connection; what does not fit spills to disk. With less than 256 MB a thread, sorts and joins of many millions
#: of rows can fail for want of memory; with more, DuckDB holds more of a large input and is no faster for it.
CONFIG: Final[Config] = {"threads": _THREADS, "memory_limit": f"{max(512, 256 * _THREADS)}MB"}
#: For queries that something slower waits between, and that leave memory to it.
SMALL: Final[Config] = CONFIG | {"threads": 1, "memory_limit": "128MB"}


@contextmanager
def writing(path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to a new database file, closed at the end so that nothing waits in a write-ahead log.

    Raises:
        ArtefactError: an input of a query is damaged, or the disk or memory is full.
    """
    leftovers = [path.with_name(path.name + suffix) for suffix in ("", ".wal", ".spill")]
    spill = leftovers[-1]
    for leftover in leftovers:  # a killed run's log would be replayed into the new file
        files.remove(leftover)
    try:
        with duckdb.connect(path, config=CONFIG | {"temp_directory": str(spill)}) as connection:
            yield connection
    except duckdb.Error as error:
        raise ArtefactError(f"{path} could not be written: {error}") from error
    finally:
        files.remove(spill)


@contextmanager
def reading(path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A read-only connection; any number of processes may hold one.

    Raises:
        MissingArtefactError: no such file.
        ArtefactError: it is no DuckDB file, or lacks a table or column.
    """
    files.require(path)
    with _damage_named(path), duckdb.connect(path, read_only=True) as connection:
        # set afterwards: connections of one process to one file must be opened with the same configuration
        for name, value in CONFIG.items():
            connection.execute(f"SET {name} = {literal(value)}")
        yield connection


class ReadOnlyDatabase:
    """A file that is read only and stays open, for many small queries, by several threads at once.

    It goes on with the file that was there when it was opened. A plain connection that stays open would be shared with
    all later ones to its path, so that these missed a new file in its place; this one is attached to a database of its
    own.

    Args:
        path: of the file.

    Raises:
        MissingArtefactError: no such file.
        ArtefactError: it is no DuckDB file.
    """

    def __init__(self, path: Path) -> None:
        self._path = files.require(path)
        with _damage_named(path):
            self._connection = duckdb.connect(config=SMALL)
            self._connection.execute(f"ATTACH {literal(path)} AS held (READ_ONLY)")

    def rows(self, query: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """What a query finds.

        Raises:
            ArtefactError: the file is damaged, or lacks a table or column.
        """
        with _damage_named(self._path), self._connection.cursor() as cursor:
            cursor.execute("USE held")
            return cursor.execute(query, dict(parameters)).fetchall()


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        raise ArtefactError(f"{path} cannot be read: {error}; remake it with `pixrec run`") from error


@contextmanager
def querying(config: Config = CONFIG) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection without a file of its own, for queries over Parquet files.

    Raises:
        ArtefactError: an input of a query is damaged, or the disk or memory is full.
    """
    try:
        with (
            tempfile.TemporaryDirectory(prefix="pixrec-") as spill,
            duckdb.connect(config=config | {"temp_directory": spill}) as connection,
        ):
            connection.execute("SET enable_progress_bar = false")  # drawn while a result waits to be read on
            yield connection
    except duckdb.Error as error:
        raise ArtefactError(f"a query failed: {error}") from error


def literal(value: Any) -> str:
    """`value` as an SQL text literal, for the places that take no parameter."""
    return "'" + str(value).replace("'", "''") + "'"


def parquet(path: Path) -> str:
    """A Parquet file's name for `read_parquet`, which would take `[`, `*` and `?` of a folder for a pattern.

    Raises:
        MissingArtefactError: no such file.
    """
    return glob.escape(str(files.require(path)))
