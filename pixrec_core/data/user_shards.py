"""Users split into shards, one per worker: a table of all users becomes one table per shard.

A step is a function of a DuckDB connection that sees the tables of one shard. What it computes about a user does not
depend on the shards. Aggregates over all users, such as the count of an item, come from `union_all`, and `broadcast`
sends results to all shards.

Between steps the tables of shards are Parquet files next to the sequences, because DuckDB's file locks are not reliable
on shared storage. A step reads the files of earlier steps and writes new ones. A shard that is processed again, since
its worker died, therefore gives the same result.

DuckDB spills sorts, joins and counts to disk, but not lists: it holds those of a statement in memory. A statement that
creates lists therefore runs once per range of users (`user_ranges`).
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import uuid4

import duckdb

from pixrec_core import files
from pixrec_core.data import database
from pixrec_core.data.database import literal
from pixrec_core.engine import Engine
from pixrec_core.paths import DatasetPaths

R = TypeVar("R")
ShardFunction = Callable[[duckdb.DuckDBPyConnection], R]

#: Configuration for one shard: workers share the cores and memory of their machine.
_CONFIG: Final = database.CONFIG | {"threads": 1, "memory_limit": "512MB"}

_INPUTS: Final = """
CREATE TEMP VIEW all_items AS SELECT * FROM read_parquet({items});
CREATE TEMP VIEW all_interactions AS
    SELECT "user", item, timestamp, rating, position FROM read_parquet({interactions})
    WHERE hash("user") % {count} = {shard};
"""

#: Approximate number of interactions of a range of users; their lists and windows take about 300 MB.
ROWS_PER_RANGE: Final = 1_000_000

#: The last user of each range: the one whose rows pass the next multiple of `$rows`.
_LAST_USERS: Final = """
SELECT "user" FROM (
    SELECT "user", n, sum(n) OVER (ORDER BY "user") AS total
    FROM (SELECT "user", count(*) AS n FROM {table} WHERE "user" IS NOT NULL GROUP BY "user")
)
WHERE total // $rows > (total - n) // $rows
ORDER BY "user"
"""


def user_ranges(connection: duckdb.DuckDBPyConnection, table: str) -> Iterator[str]:
    """Return SQL conditions on "user" that divide `table` into ranges of about `ROWS_PER_RANGE` rows, sorted by user.

    Every user, of this or any other table, is in exactly one range. Rows without a user are in the first one.
    """
    last = connection.execute(_LAST_USERS.format(table=table), {"rows": ROWS_PER_RANGE}).fetchall()
    for low, high in pairwise([None, *(user for (user,) in last), None]):
        above = "true" if low is None else f'"user" > {literal(low)}'
        up_to = "true" if high is None else f'"user" <= {literal(high)}'
        yield f'({above} AND {up_to} OR "user" IS NULL)' if low is None else f"({above} AND {up_to})"


@dataclass
class Shards:
    """All users in a single shard, whose tables are those of `connection`.

    Attributes:
        connection: to the file that is being built.
    """

    connection: duckdb.DuckDBPyConnection

    def map(self, function: ShardFunction[R], writes: Sequence[str] = ()) -> list[R]:  # noqa: ARG002
        """Call a function for every shard, and return its results in the order of the shards.

        Its connection has the views `all_items` and `all_interactions` (those of the shard's users), and the tables
        that earlier calls wrote.

        Args:
            function: can be pickled.
            writes: tables that it creates or changes.
        """
        return [function(self.connection)]

    def union_all(self, table: str) -> str:
        """Return the SQL, to follow FROM in `connection`, of the rows of a table in all shards."""
        return table

    def broadcast(self, table: str, query: str) -> None:
        """Create a table in every shard with the result of `query` in `connection`."""
        self.connection.execute(f"CREATE OR REPLACE TEMP TABLE {table} AS {query}")

    def gather(self, table: str, schema: str, order: str, ranges_of: str) -> None:
        """Copy a table from all shards into the file.

        Args:
            table: its name, in the shards and in the file.
            schema: the CREATE TABLE statement.
            order: of its rows within a range of users.
            ranges_of: table of the shards from which `user_ranges` are computed.
        """


@contextmanager
def open_shards(connection: duckdb.DuckDBPyConnection, paths: DatasetPaths, engine: Engine) -> Iterator[Shards]:
    """Split the users of a dataset into one shard per worker; a single worker uses the tables of `connection`.

    Raises:
        MissingArtefactError: items or interactions have not been built.
    """
    shutil.rmtree(paths.sequences_shards, ignore_errors=True)  # left by a killed run
    _create_input_views(connection, paths, count=1, shard=0)
    if engine.workers == 1:
        yield Shards(connection)
        return
    try:  # in a folder with a unique name, since a worker of a killed run may still be running
        yield DistributedShards(connection, engine, paths, paths.sequences_shards / uuid4().hex)
    finally:
        shutil.rmtree(paths.sequences_shards, ignore_errors=True)


def _create_input_views(connection: duckdb.DuckDBPyConnection, paths: DatasetPaths, count: int, shard: int) -> None:
    items, interactions = _path_literal(paths.items), _path_literal(paths.interactions)
    connection.execute(_INPUTS.format(items=items, interactions=interactions, count=count, shard=shard))


@dataclass(frozen=True)
class ShardTask:
    """One step, called by a worker with the number of a shard.

    Attributes:
        function: to call.
        paths: of the dataset.
        count: of all shards.
        tables: files of each existing table, one per shard.
        writes: files of each table that the function creates or changes, one per shard.
    """

    function: ShardFunction[Any]
    paths: DatasetPaths
    count: int
    tables: Mapping[str, Sequence[Path]]
    writes: Mapping[str, Sequence[Path]]

    def __call__(self, shard: int) -> Any:
        """Call the function for a shard, write its tables, and return its result."""
        with database.connect_in_memory(_CONFIG) as connection:
            _create_input_views(connection, self.paths, self.count, shard)
            for table, paths in self.tables.items():
                kind = "TABLE" if table in self.writes else "VIEW"
                connection.execute(f"CREATE TEMP {kind} {table} AS FROM read_parquet({_path_literal(paths[shard])})")
            result = self.function(connection)
            for table, paths in self.writes.items():
                _write_parquet(connection, f"FROM {table}", paths[shard])
        return result


@dataclass
class DistributedShards(Shards):
    """One shard per worker of an engine; their tables are files in `folder`."""

    engine: Engine
    paths: DatasetPaths
    folder: Path
    _steps: int = 0
    _tables: dict[str, list[Path]] = field(default_factory=dict)

    def map(self, function: ShardFunction[R], writes: Sequence[str] = ()) -> list[R]:
        self._steps += 1
        shards = range(self.engine.workers)
        written = {
            table: [self.folder / f"{table}.{self._steps}.{shard}.parquet" for shard in shards] for table in writes
        }
        task = ShardTask(function, self.paths, len(shards), dict(self._tables), written)
        results: list[R] = list(self.engine.map_shards(task, shards))
        for table, paths in written.items():
            self._replace(table, paths)
        return results

    def union_all(self, table: str) -> str:
        return f"read_parquet([{', '.join(map(_path_literal, self._tables[table]))}])"

    def broadcast(self, table: str, query: str) -> None:
        self._steps += 1
        path = self.folder / f"{table}.{self._steps}.parquet"
        _write_parquet(self.connection, query, path)
        self._replace(table, [path] * self.engine.workers)

    def gather(self, table: str, schema: str, order: str, ranges_of: str) -> None:
        self.connection.execute(schema)
        for users in user_ranges(self.connection, self.union_all(ranges_of)):
            self.connection.execute(f"INSERT INTO {table} FROM {self.union_all(table)} WHERE {users} ORDER BY {order}")

    def _replace(self, table: str, paths: list[Path]) -> None:
        for path in self._tables.get(table, []):
            files.remove(path)
        self._tables[table] = paths


def _path_literal(path: Path) -> str:
    return literal(database.parquet_path(path))


def _write_parquet(connection: duckdb.DuckDBPyConnection, query: str, path: Path) -> None:
    with files.replacing(path) as temporary:
        connection.execute(f"COPY ({query}) TO {literal(temporary)} (FORMAT parquet)")
