"""Users parted over workers: what one table is on one machine, is then one table in each shard of the users.

A step is SQL in a connection that sees the tables of one shard. What it may say of a user is the same however users
are parted; what is of all users together, as the count of an item, is asked of `together`, and its answer told to all.

Shards live from step to step in Parquet files beside the sequences, never in a DuckDB file: on shared storage its
locks are not to be relied on. A step reads what the steps before left and writes new files, so a shard that is worked
on again gives the same, whenever its worker died.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar
from uuid import uuid4

import duckdb

from pixrec_core import files
from pixrec_core.data import database
from pixrec_core.data.user_ranges import user_ranges
from pixrec_core.engine import Engine
from pixrec_core.paths import DatasetPaths

R = TypeVar("R")
Step = Callable[[duckdb.DuckDBPyConnection], R]

#: Of one shard: workers share their machines' cores and memory.
_CONFIG: Final = database.CONFIG | {"threads": 1, "memory_limit": "512MB"}

_INPUTS: Final = """
CREATE TEMP VIEW metadata AS SELECT * FROM read_parquet({items});
CREATE TEMP VIEW bought AS
    SELECT "user", item, timestamp, rating, position FROM read_parquet({interactions})
    WHERE hash("user") % {count} = {number};
"""


class Shards(Protocol):
    """All users, in one shard or in many."""

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """Of the file that is being made."""
        ...

    def map(self, step: Step[R], makes: Sequence[str] = ()) -> list[R]:
        """Take a step in every shard; returns what it gave there.

        It finds the views `metadata` (all items) and `bought` (the interactions of the shard's users), and what earlier
        steps made.

        Args:
            step: what can be pickled.
            makes: tables that it makes anew or changes.
        """
        ...

    def union_all(self, table: str) -> str:
        """What to name after FROM, in `connection`, for the rows of a table in all shards."""
        ...

    def broadcast(self, table: str, query: str) -> None:
        """Let every shard have a table of what `query` finds in `connection`."""
        ...

    def gather(self, table: str, schema: str, order: str, sized_by: str) -> None:
        """Bring a table from all shards into the file.

        Args:
            table: its name, here and there.
            schema: the statement that makes it.
            order: of its rows, within a range of users.
            sized_by: the table of the shards whose rows say how many users are brought at a time.
        """
        ...


@contextmanager
def parted(connection: duckdb.DuckDBPyConnection, paths: DatasetPaths, engine: Engine) -> Iterator[Shards]:
    """The users of a dataset, a shard for each worker of the engine; with one alone, in the file itself.

    Raises:
        MissingArtefactError: items or interactions have not been made.
    """
    shutil.rmtree(paths.sequences_shards, ignore_errors=True)  # a killed run's
    _see_inputs(connection, paths, 1, 0)
    if engine.workers == 1:
        yield LocalShards(connection)
        return
    try:  # in a folder of its own name: a worker of a killed run may not have ended yet
        yield DistributedShards(connection, engine, paths, paths.sequences_shards / uuid4().hex)
    finally:
        shutil.rmtree(paths.sequences_shards, ignore_errors=True)


def _see_inputs(connection: duckdb.DuckDBPyConnection, paths: DatasetPaths, count: int, number: int) -> None:
    items, interactions = _named(paths.items), _named(paths.interactions)
    connection.execute(_INPUTS.format(items=items, interactions=interactions, count=count, number=number))


@dataclass(frozen=True)
class LocalShards:
    """One shard, whose tables are those of the connection."""

    connection: duckdb.DuckDBPyConnection

    def map(self, step: Step[R], makes: Sequence[str] = ()) -> list[R]:  # noqa: ARG002
        """See `Shards`."""
        return [step(self.connection)]

    def union_all(self, table: str) -> str:
        """See `Shards`."""
        return table

    def broadcast(self, table: str, query: str) -> None:
        """See `Shards`."""
        self.connection.execute(f"CREATE OR REPLACE TEMP TABLE {table} AS {query}")

    def gather(self, table: str, schema: str, order: str, sized_by: str) -> None:
        """See `Shards`: it is there already."""


@dataclass(frozen=True)
class ShardTask:
    """One step, as a worker takes it in one shard.

    Attributes:
        step: to take.
        makes: tables that it makes anew or changes.
        number: of the turn.
        paths: of the dataset.
        count: of all shards.
        folder: of their files.
        tables: the turn that made each table of the shards.
        told: the turn that made each table that all shards have alike.
    """

    step: Step[Any]
    makes: Sequence[str]
    number: int
    paths: DatasetPaths
    count: int
    folder: Path
    tables: dict[str, int]
    told: dict[str, int]

    def __call__(self, shard: int) -> Any:
        """Take it, and leave what it makes."""
        with database.connect_in_memory(_CONFIG) as connection:
            self._open(connection, shard)
            result = self.step(connection)
            for table in self.makes:
                with files.replacing(_file(self.folder, table, self.number, shard)) as temporary:
                    _copy(connection, f"FROM {table}", temporary)
        return result

    def _open(self, connection: duckdb.DuckDBPyConnection, shard: int) -> None:
        _see_inputs(connection, self.paths, self.count, shard)
        for table, turn in self.told.items():
            _view(connection, "VIEW", table, _file(self.folder, table, turn))
        for table, turn in self.tables.items():
            kind = "TABLE" if table in self.makes else "VIEW"
            _view(connection, kind, table, _file(self.folder, table, turn, shard))


@dataclass
class DistributedShards:
    """A shard for each worker of an engine."""

    connection: duckdb.DuckDBPyConnection
    engine: Engine
    paths: DatasetPaths
    folder: Path
    _turn: int = 0
    _tables: dict[str, int] = field(default_factory=dict)
    _told: dict[str, int] = field(default_factory=dict)

    def map(self, step: Step[R], makes: Sequence[str] = ()) -> list[R]:
        """See `Shards`."""
        self._turn += 1
        count = self.engine.workers
        turn = ShardTask(step, makes, self._turn, self.paths, count, self.folder, dict(self._tables), dict(self._told))
        results: list[R] = list(self.engine.map_shards(turn, range(count)))
        for table in makes:
            if table in self._tables:
                for path in self._files(table):
                    files.remove(path)
            self._tables[table] = self._turn
        return results

    def union_all(self, table: str) -> str:
        """See `Shards`."""
        return f"read_parquet([{', '.join(map(_named, self._files(table)))}])"

    def broadcast(self, table: str, query: str) -> None:
        """See `Shards`."""
        self._turn += 1
        with files.replacing(_file(self.folder, table, self._turn)) as temporary:
            _copy(self.connection, query, temporary)
        if table in self._told:
            files.remove(_file(self.folder, table, self._told[table]))
        self._told[table] = self._turn

    def gather(self, table: str, schema: str, order: str, sized_by: str) -> None:
        """See `Shards`."""
        self.connection.execute(schema)
        for some_users in user_ranges(self.connection, self.union_all(sized_by)):
            self.connection.execute(
                f"INSERT INTO {table} FROM {self.union_all(table)} WHERE {some_users} ORDER BY {order}"
            )

    def _files(self, table: str) -> list[Path]:
        return [_file(self.folder, table, self._tables[table], shard) for shard in range(self.engine.workers)]


def _file(folder: Path, table: str, turn: int, shard: int | None = None) -> Path:
    return folder / ".".join([table, str(turn), *([] if shard is None else [str(shard)]), "parquet"])


def _named(path: Path) -> str:
    return database.literal(database.parquet_path(path))


def _view(connection: duckdb.DuckDBPyConnection, kind: str, table: str, path: Path) -> None:
    connection.execute(f"CREATE TEMP {kind} {table} AS FROM read_parquet({_named(path)})")


def _copy(connection: duckdb.DuckDBPyConnection, query: str, path: Path) -> None:
    connection.execute(f"COPY ({query}) TO {database.literal(path)} (FORMAT parquet)")
