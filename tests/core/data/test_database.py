"""Readers of DuckDB files share one database per process, and each sees the file that is there when it starts."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import pytest

from pixrec_core.data import database
from pixrec_core.errors import ArtefactError


def write(path: Path, value: int) -> Path:
    """Write a file with one row, as artefacts are written: complete, and in place of an earlier one."""
    with duckdb.connect(path.with_name("new")) as connection:
        connection.execute("CREATE TABLE t AS SELECT ? AS x", [value])
    return path.with_name("new").replace(path)


def read(path: Path) -> int:
    with database.open_read_only(path) as connection:
        ((value,),) = connection.execute("FROM t").fetchall()
    return value


def test_each_reader_sees_its_own_file(tmp_path):
    one, two = write(tmp_path / "one.duckdb", 1), write(tmp_path / "two.duckdb", 2)
    with database.open_read_only(one) as first, database.open_read_only(two) as second:
        assert read(one) == 1
        assert first.execute("FROM t").fetchall() == [(1,)]
        assert second.execute("FROM t").fetchall() == [(2,)]


def test_a_file_that_replaces_another_is_read(tmp_path):
    path = write(tmp_path / "a.duckdb", 1)
    assert read(path) == 1
    write(path, 2)
    assert read(path) == 2


def test_a_reader_cannot_write(tmp_path):
    with (
        pytest.raises(ArtefactError, match="read-only"),
        database.open_read_only(write(tmp_path / "a.duckdb", 1)) as connection,
    ):
        connection.execute("INSERT INTO t VALUES (2)")
    assert read(tmp_path / "a.duckdb") == 1


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_threads_and_forked_processes_can_read(tmp_path):
    path = write(tmp_path / "a.duckdb", 1)
    with database.open_read_only(path):
        if not (child := os.fork()):
            os._exit(read(path))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(read, [path] * 40)) == [1] * 40
