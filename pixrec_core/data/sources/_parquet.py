"""Parquet files, read by DuckDB; the line of a row is its number from 1."""

import glob
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import duckdb

from pixrec_core.data.database import literal
from pixrec_core.data.raw_table import RawTable, fetch_row
from pixrec_core.errors import SourceError

_MAGIC: Final = b"PAR1"


def is_parquet(path: Path) -> bool:
    """Return whether a file is Parquet, by its first bytes."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def scan_parquet(path: Path, columns: Mapping[str, str]) -> str:
    """Return SQL that reads the mapped columns under our names."""
    mapped = ", ".join(f'"{theirs.replace(chr(34), chr(34) * 2)}" AS "{ours}"' for ours, theirs in columns.items())
    return f"SELECT {mapped} FROM read_parquet({literal(glob.escape(str(path)))})"  # noqa: S608


def parquet_header(db: duckdb.DuckDBPyConnection, path: Path) -> list[str]:
    """Return the names of the columns.

    Raises:
        SourceError: the file is damaged.
    """
    try:
        rows = db.execute(f"DESCRIBE FROM read_parquet({literal(glob.escape(str(path)))})").fetchall()
    except duckdb.Error as error:
        raise damaged_error(path, error) from error
    return [row[0] for row in rows]


def damaged_error(path: Path, error: duckdb.Error) -> SourceError:
    """Return the error of a Parquet file that cannot be read."""
    return SourceError(f"{path} is a damaged Parquet file ({str(error).partition(chr(10))[0]}); write it again")


def load_parquet(db: duckdb.DuckDBPyConnection, path: Path, columns: Mapping[str, str], select: str) -> RawTable:
    """Load a Parquet file into the table `parsed`.

    Args:
        db: where the table is created.
        path: the file.
        columns: the file's columns by our names.
        select: SQL of the canonical columns and `fault`, of the mapped columns in their types.

    Raises:
        SourceError: the file is damaged.
    """
    scan = scan_parquet(path, columns)
    try:
        db.execute(f"CREATE TABLE parsed AS SELECT {select} FROM ({scan}) AS raw")  # noqa: S608
    except duckdb.Error as error:
        raise damaged_error(path, error) from error
    (rows,) = fetch_row(db, "SELECT count(*) FROM parsed")
    return RawTable(path, "SELECT *, rowid + 1 AS line FROM parsed", partial(_raw_rows, db, path, columns), rows)


def _raw_rows(
    db: duckdb.DuckDBPyConnection, path: Path, columns: Mapping[str, str], numbers: Iterable[int]
) -> Iterator[bytes]:
    """Yield the mapped columns of the rows that the view `judged` rejects, as JSON."""
    cells = ", ".join(f'{literal(theirs)}, "{theirs.replace(chr(34), chr(34) * 2)}"' for theirs in columns.values())
    cursor = db.cursor().execute(
        f"""SELECT json_object({cells})::VARCHAR
            FROM read_parquet({literal(glob.escape(str(path)))}, file_row_number = true)
            WHERE file_row_number + 1 IN (SELECT line FROM judged WHERE fault IS NOT NULL)
            ORDER BY file_row_number"""  # noqa: S608
    )
    for _, row in zip(numbers, iter(cursor.fetchone, None), strict=True):
        yield row[0].encode()
