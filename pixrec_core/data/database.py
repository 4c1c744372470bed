"""DuckDB connections: a database file has one writer, under a temporary name, and then only readers.

Two processes that open one file for writing fail at once. A writer therefore creates a new file, which replaces the old
one when it is complete.
"""

import glob
import hashlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, Final

import duckdb

from pixrec_core import files
from pixrec_core.errors import ArtefactError

_THREADS: Final = min(os.cpu_count() or 1, 8)

Config = dict[str, str | bool | int | float | list[str]]  # the type in DuckDB's stubs

#: Configuration of a connection; what exceeds the memory limit spills to disk. With less than 256 MB per thread, sorts
#: and joins of many millions of rows can run out of memory; with more, DuckDB buffers more input and is no faster.
CONFIG: Final[Config] = {"threads": _THREADS, "memory_limit": f"{max(512, 256 * _THREADS)}MB"}
#: For queries that alternate with slower work, which needs the memory.
LOW_MEMORY: Final[Config] = CONFIG | {"threads": 1, "memory_limit": "128MB"}


@contextmanager
def create_database(path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a connection to a new database file; closing it writes everything to the file.

    Raises:
        ArtefactError: an input of a query is damaged, or the disk or memory is full.
    """
    leftovers = [path.with_name(path.name + suffix) for suffix in ("", ".wal", ".spill")]
    spill = leftovers[-1]
    for leftover in leftovers:  # DuckDB would replay the log of a killed run into the new file
        files.remove(leftover)
    try:
        with _creatable(path) as target, duckdb.connect(target, config=CONFIG | {"temp_directory": str(spill)}) as db:
            yield db
    except duckdb.Error as error:
        raise ArtefactError(f"{path} could not be written: {error}") from error
    finally:
        files.remove(spill)


@contextmanager
def _creatable(path: Path) -> Iterator[Path]:
    """Yield where DuckDB can create a database file that is at `path` afterwards.

    DuckDB takes `?` in a path for the start of options and writes its log elsewhere, also through a symbolic link.
    """
    if "?" not in str(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="pixrec-") as folder:
        yield Path(folder) / path.name
        shutil.move(Path(folder) / path.name, path)


@contextmanager
def open_read_only(path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a read-only connection; any number of processes may have one.

    The file is attached to a database in main memory that all callers of this process share: to open one takes 16 ms of
    CPU, ten times as long as most queries.

    Raises:
        MissingArtefactError: the file does not exist.
        ArtefactError: it is not a DuckDB file, or lacks a table or column.
    """
    files.require(path)
    with _reporting_damage(path), _readers(os.getpid()).open(path) as connection:
        yield connection


class _Readers:
    """A database in main memory, to which the files are attached that callers read."""

    def __init__(self) -> None:
        self._connection = duckdb.connect(config=CONFIG)
        self._counts = Counter[str]()  # readers of each attached file, by its name in the database
        self._lock = Lock()

    @contextmanager
    def open(self, path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open a connection to a file. DuckDB attaches a path once, so readers at the same time share that."""
        name = f"file_{hashlib.sha256(os.fsencode(path.absolute())).hexdigest()}"
        with self._lock:
            if not self._counts[name]:
                self._connection.execute(f"ATTACH {literal(path)} AS {name} (TYPE duckdb, READ_ONLY)")
            self._counts[name] += 1
        try:
            with self._connection.cursor() as connection:
                connection.execute(f"USE {name}")
                yield connection
        finally:
            with self._lock:
                self._counts[name] -= 1
                if not self._counts[name]:
                    self._connection.execute(f"DETACH {name}")


@cache
def _readers(process_id: int) -> _Readers:
    """Return the database of this process: a forked one cannot use its parent's."""
    del process_id
    return _Readers()


class ReadOnlyDatabase:
    """A database file that stays open for many small queries from several threads.

    It keeps reading the file that existed when it was opened. The file is attached to a separate in-memory database: a
    plain connection would be shared with all later ones to the same path, and these would miss a new file.

    Args:
        path: of the file.

    Raises:
        MissingArtefactError: the file does not exist.
        ArtefactError: it is not a DuckDB file.
    """

    def __init__(self, path: Path) -> None:
        self._path = files.require(path)
        with _reporting_damage(path):
            self._connection = duckdb.connect(config=LOW_MEMORY)
            self._connection.execute(f"ATTACH {literal(path)} AS attached (READ_ONLY)")

    def rows(self, query: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Return all rows of a query.

        Raises:
            ArtefactError: the file is damaged, or lacks a table or column.
        """
        with _reporting_damage(self._path), self._connection.cursor() as cursor:
            cursor.execute("USE attached")
            return cursor.execute(query, dict(parameters)).fetchall()


@contextmanager
def _reporting_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        raise ArtefactError(f"{path} cannot be read: {error}; build it again with `pixrec run`") from error


@contextmanager
def connect_in_memory(config: Config = CONFIG) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a connection without a database file, for queries over Parquet files.

    Raises:
        ArtefactError: an input of a query is damaged, or the disk or memory is full.
    """
    try:
        with (
            tempfile.TemporaryDirectory(prefix="pixrec-") as spill,
            duckdb.connect(config=config | {"temp_directory": spill}) as connection,
        ):
            connection.execute("SET enable_progress_bar = false")  # it would be printed while a result is read
            yield connection
    except duckdb.Error as error:
        raise ArtefactError(f"a query failed: {error}") from error


def literal(value: Any) -> str:
    """Return `value` as an SQL text literal, for statements that accept no parameter."""
    return "'" + str(value).replace("'", "''") + "'"


def file_literal(path: Path) -> str:
    """Return an SQL text literal of one file for `read_parquet`, `read_csv` and `read_json`, which expand patterns."""
    return literal(glob.escape(str(path)))


def parquet_path(path: Path) -> str:
    """Return the path of a Parquet file for `read_parquet`, with `[`, `*` and `?` escaped.

    Raises:
        MissingArtefactError: the file does not exist.
    """
    return glob.escape(str(files.require(path)))
