"""Parquet files, read by DuckDB; the line of a row is its number from 1."""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import duckdb

from pixrec_core.data import raw_lines
from pixrec_core.data.database import file_literal, literal
from pixrec_core.data.raw_table import RawTable, fetch_row
from pixrec_core.data.sources._mapping import Mapping, constant, quoted
from pixrec_core.errors import SourceError


def is_parquet(path: Path) -> bool:
    """Return whether a file is Parquet, by its first bytes."""
    return raw_lines.starts_with(path, b"PAR1")


def scan_parquet(db: duckdb.DuckDBPyConnection, path: Path, mapping: Mapping) -> str:
    """Return SQL that reads the mapped columns under our names, and `broken` if one may be no text.

    Some writers do not mark text as UTF-8. Such a column is read as text; `broken` says why a row has none.

    Raises:
        SourceError: the file is damaged or lacks a column.
    """
    types = _types(db, path)
    header = list(types)
    mapping.check(path, header)
    cells = {name: quoted(name) for name in header}
    texts = _decoded(types, mapping)
    rows = f"read_parquet({file_literal(path)}, hive_partitioning = false)"
    if not texts:
        return mapping.select(rows, header, cells)
    faults = " ".join(
        f"WHEN {quoted(name)} IS NOT NULL AND {texts[name]} IS NULL "
        f"THEN {literal(f'{theirs} is not UTF-8 text: ')} || left({quoted(name)}::VARCHAR, 40)"
        for theirs, name in mapping.resolved(header).items()
        if name in texts
    )
    broken = f"CASE {faults} END" if faults else "NULL::VARCHAR"
    decoded = ", ".join(f"{text} AS {quoted(name)}" for name, text in texts.items())
    rows = f"(SELECT * REPLACE ({decoded}), {broken} AS pixrec_broken FROM {rows})"  # noqa: S608
    return mapping.select(rows, header, cells, ["pixrec_broken AS broken"])


def _decoded(types: dict[str, str], mapping: Mapping) -> dict[str, str]:
    """Return SQL of the text of each column of bytes and of lists of bytes; NULL if it is not UTF-8.

    The column of images is left out: photos are bytes.
    """
    image = mapping.resolved(list(types)).get(mapping.names.get("image", ""))
    sql = {"BLOB": "TRY(decode({0}))", "BLOB[]": "TRY(list_transform({0}, lambda x: decode(x)))"}
    return {name: sql[kind].format(quoted(name)) for name, kind in types.items() if kind in sql and name != image}


def parquet_header(db: duckdb.DuckDBPyConnection, path: Path) -> list[str]:
    """Return the names of the columns.

    Raises:
        SourceError: the file is damaged.
    """
    return list(_types(db, path))


def _types(db: duckdb.DuckDBPyConnection, path: Path) -> dict[str, str]:
    """Return DuckDB's type of each column.

    Raises:
        SourceError: the file is damaged.
    """
    try:
        rows = db.execute(f"DESCRIBE FROM read_parquet({file_literal(path)}, hive_partitioning = false)").fetchall()
    except duckdb.Error as error:
        raise damaged_error(path, error) from error
    return {name: kind for name, kind, *_ in rows}


def damaged_error(path: Path, error: duckdb.Error) -> SourceError:
    """Return the error of a Parquet file that cannot be read."""
    return SourceError(f"{path} is a damaged Parquet file ({str(error).partition(chr(10))[0]}); write it again")


def load_parquet(
    db: duckdb.DuckDBPyConnection, path: Path, mapping: Mapping, scan: str, select: str, number: int
) -> RawTable:
    """Load a Parquet file into the table `parsed_<number>`.

    `scan` is from `scan_parquet`; `select` is SQL of the canonical columns, `fault` and `dropped`, of the mapped
    columns in their types.

    Raises:
        SourceError: the file is damaged, or the filter `where` is not valid.
    """
    table = f"parsed_{number}"
    try:
        with mapping.reporting_where(path):
            db.execute(f"CREATE TABLE {table} AS SELECT {select} FROM ({scan}) AS raw")  # noqa: S608
    except duckdb.Error as error:
        raise damaged_error(path, error) from error
    (rows,) = fetch_row(db, f"SELECT count(*) FROM {table}")  # noqa: S608
    types = _types(db, path)
    found, constants, texts = mapping.resolved(list(types)), dict(mapping.constants), _decoded(types, mapping)
    cells = ", ".join(
        f"{literal(theirs)}, {constant(constants[name]) if name in constants else texts.get(name, quoted(name))}"
        for theirs, name in found.items()
    )
    raw = partial(_raw_rows, db, path, cells, number)
    return RawTable(path, f"SELECT *, rowid + 1 AS line FROM {table}", raw, rows)  # noqa: S608


def _raw_rows(
    db: duckdb.DuckDBPyConnection, path: Path, cells: str, file: int, numbers: Iterable[int]
) -> Iterator[bytes]:
    """Yield the mapped columns of the rejected rows of a file, as JSON."""
    cursor = db.cursor().execute(
        f"""SELECT json_object({cells})::VARCHAR
            FROM read_parquet({file_literal(path)}, file_row_number = true, hive_partitioning = false)
            WHERE file_row_number + 1 IN (SELECT line FROM bad WHERE file = {file} AND fault IS NOT NULL)
            ORDER BY file_row_number"""  # noqa: S608
    )
    for _, row in zip(numbers, iter(cursor.fetchone, None), strict=True):
        yield row[0].encode()
