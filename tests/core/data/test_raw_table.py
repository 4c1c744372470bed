"""Errors of DuckDB while raw files are read: one message that names the file, and nothing left behind."""

import duckdb
import pytest

from pixrec_core.data.raw_table import RawTable, checked_rows
from pixrec_core.errors import ArtefactError
from tests.core.data.raw_shop import LENIENT

FULL = "error('No space left on device')"


def check(tmp_path, load):
    with checked_rows(load, "NULL::VARCHAR", tmp_path / "items.quarantine.parquet", LENIENT):
        pytest.fail("there are no rows")


def test_an_error_within_the_rows_of_a_file_names_the_file(tmp_path):
    query = f"SELECT 1::BIGINT AS line, {FULL}::VARCHAR AS fault, NULL::VARCHAR AS dropped"
    table = RawTable(tmp_path / "products.csv", query, lambda numbers: iter([]), 1)
    with pytest.raises(ArtefactError, match=r"products\.csv could not be imported: .*No space left on device"):
        check(tmp_path, lambda db, folder: [table])
    assert not list(tmp_path.iterdir())


def test_an_error_before_any_file_is_loaded_names_the_quarantine(tmp_path):
    def load(db: duckdb.DuckDBPyConnection, folder):
        (folder / "unpacked").write_bytes(b"half")
        return db.execute(f"SELECT {FULL}").fetchall()

    with pytest.raises(ArtefactError, match=r"items\.quarantine\.parquet could not be imported: .*No space left"):
        check(tmp_path, load)
    assert not list(tmp_path.iterdir())
