"""Rows of a raw file: good rows in a DuckDB view, rejected rows in a quarantine table."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import merge
from itertools import chain, islice, tee
from pathlib import Path
from typing import Any, Final

import duckdb
import polars as pl
import pyarrow.parquet as pq

from pixrec_core import files
from pixrec_core.data.database import CONFIG, literal
from pixrec_core.errors import SourceError
from pixrec_core.schemas import QUARANTINE_SCHEMA
from pixrec_core.settings import IngestSettings
from pixrec_core.stages import Stats

log = logging.getLogger(__name__)

RAW_CHARACTERS: Final = 200
_BATCH = 10_000

#: `number`: of "12.50" or "$1,299"; NULL for "from 3.99". `address`: an http(s) URL, or the path of a local photo if
#: the dataset has a photo folder (`has_local_photos`).
MACROS: Final = r"""
CREATE MACRO number(t) AS CASE WHEN regexp_full_match(t, '[$£€¥]? ?([0-9]+|[0-9]{1,3}(,[0-9]{3})+)([.][0-9]+)?')
    THEN TRY_CAST(regexp_replace(t, '[^0-9.]', '', 'g') AS DOUBLE) END;
CREATE MACRO address(t) AS CASE WHEN regexp_full_match(trim(t), '(?i)https?://[^\s\p{Cc}]+')
    OR (has_local_photos() AND regexp_full_match(trim(t), '[^\p{Cc}]+') AND NOT contains(t, '://')) THEN trim(t) END;
"""

#: Why a row is rejected: line number and reason.
Fault = tuple[int, str]
#: A row of the quarantine table: file, line number, reason, first characters.
RejectedRow = tuple[str, int, str, str]


@dataclass(frozen=True)
class RawTable:
    """A raw file that a source has loaded into a DuckDB connection.

    Attributes:
        path: the raw file.
        query: SQL of its rows: the canonical columns, `line` (line number from 1) and `fault` (why the source rejects
            the row; NULL for a good row).
        raw: returns the raw bytes of lines, given their numbers in ascending order.
        faults: lines that the reader could not turn into a row, ascending.
        explain: returns a more exact reason for a raw line, or None.
        lost: number of lines that belong to no row and no fault.
        damage: why a gzip file could not be read to its end; None for a complete file.
        lines: number of lines of the file.
    """

    path: Path
    query: str
    raw: Callable[[Iterable[int]], Iterator[bytes]]
    lines: int
    faults: tuple[Fault, ...] = ()
    explain: Callable[[bytes], str | None] | None = None
    lost: int = 0
    damage: str | None = None


@dataclass(frozen=True)
class CheckedTable:
    """A raw file whose rows have been checked.

    Attributes:
        db: has the view `good`: the canonical columns and `line`.
        good: number of good rows.
        stats: bad_lines, bad_share (of the lines that are not blank), truncated.
    """

    db: duckdb.DuckDBPyConnection
    good: int
    stats: Stats


@contextmanager
def checked_rows(
    load: Callable[[duckdb.DuckDBPyConnection, Path], RawTable],
    faults: str,
    quarantine: Path,
    settings: IngestSettings,
) -> Iterator[CheckedTable]:
    """Load a raw file, write its rejected rows to `quarantine` (QUARANTINE_SCHEMA) and yield the good ones.

    Memory stays flat: a temporary folder next to `quarantine` takes what does not fit.

    Args:
        load: loads the file into a connection; the folder is for its temporary files.
        faults: SQL of the reason to reject a row, over the canonical columns; NULL for a good row.
        quarantine: the Parquet file to write.
        settings: limits.

    Raises:
        SourceError: the file is missing or has no good row, its share of rejected rows exceeds `max_bad_share`, or it
            expands past `max_expansion`.
    """
    folder = quarantine.with_name(f".{quarantine.stem}.work")  # a fixed name, so that a rerun removes a killed run's
    files.remove(folder)
    folder.mkdir(parents=True)
    try:
        with duckdb.connect(config=CONFIG | {"temp_directory": str(folder / "spill")}) as db:
            db.execute("SET TimeZone = 'UTC'")  # times without an offset are UTC
            table = load(db, folder)
            columns = f"* REPLACE (coalesce(fault, {faults}) AS fault)"
            db.execute(f"CREATE VIEW judged AS SELECT {columns} FROM ({table.query})")  # noqa: S608
            bad, first = _write_quarantine(_rejected_rows(db, table), quarantine)
            bad += max(table.lost - 1, 0)  # one row of the quarantine table stands for all
            db.execute("CREATE VIEW good AS SELECT * EXCLUDE (fault) FROM judged WHERE fault IS NULL")
            (good,) = fetch_row(db, "SELECT count(*) FROM good")
            share = bad / max(good + bad, 1)
            stats = {"bad_lines": bad, "bad_share": share, "truncated": table.damage is not None}
            checked = CheckedTable(db, good, stats)
            _check_share(checked, first, table.path, quarantine, settings.max_bad_share)
            log.info("%s: %s good rows, %s rejected lines", table.path, f"{good:,}", f"{bad:,}")
            yield checked
    finally:
        files.remove(folder)


def id_fault(column: str) -> str:
    """Return SQL of why a column is not an id; NULL for an id."""
    return f"""CASE WHEN trim(coalesce("{column}", ''), ' ') = '' THEN '{column} is empty'
        WHEN contains("{column}", chr(0)) THEN '{column} contains a NUL' END"""


def write_query(db: duckdb.DuckDBPyConnection, query: str, path: Path) -> None:
    """Write the rows of a query to a Parquet file, atomically."""
    options = "FORMAT parquet, PARQUET_VERSION v2, COMPRESSION zstd, COMPRESSION_LEVEL 1"  # smaller and faster than v1
    with files.replacing(path) as temporary:
        db.execute(f"COPY ({query}) TO {literal(temporary)} ({options})")


def fetch_row(
    db: duckdb.DuckDBPyConnection, query: str, parameters: Mapping[str, Any] | None = None
) -> tuple[Any, ...]:
    """Return the single row of a query."""
    row: tuple[Any, ...]
    # `fetchone` would leave the result open, which blocks `create_function`
    (row,) = db.execute(query, dict(parameters or {})).fetchall()
    return row


def _rejected_rows(db: duckdb.DuckDBPyConnection, table: RawTable) -> Iterator[RejectedRow]:
    """Yield the rows of the quarantine table in file order."""
    cursor = db.execute("SELECT line, fault FROM judged WHERE fault IS NOT NULL ORDER BY line")
    faults, again = tee(merge(iter(cursor.fetchone, None), table.faults))
    lines = table.raw(number for number, _ in again)
    for (number, fault), raw in zip(faults, lines, strict=True):
        if raw.strip():
            yield str(table.path), number, (table.explain and table.explain(raw)) or fault, _prefix(raw)
    if table.lost:
        yield str(table.path), table.lines, f"{table.lost:,} lines of the file belong to no row", ""
    if table.damage:
        yield str(table.path), table.lines, f"the file is damaged and readable only up to here: {table.damage}", ""


def _prefix(raw: bytes) -> str:
    return raw[: 4 * RAW_CHARACTERS].decode("utf-8", "replace").rstrip("\r\n")[:RAW_CHARACTERS]


def _write_quarantine(rows: Iterator[RejectedRow], path: Path) -> tuple[int, list[RejectedRow]]:
    """Write all rows in batches; return their number and the first three."""
    count, first = 0, list(islice(rows, 3))
    rows = chain(first, rows)
    with files.replacing(path) as temporary:
        empty = pl.DataFrame(schema=QUARANTINE_SCHEMA).to_arrow()
        with pq.ParquetWriter(temporary, empty.schema) as writer:
            while batch := list(islice(rows, _BATCH)):
                writer.write_table(pl.DataFrame(batch, schema=QUARANTINE_SCHEMA, orient="row").to_arrow())
                count += len(batch)
    return count, first


def _check_share(checked: CheckedTable, first: list[RejectedRow], path: Path, quarantine: Path, allowed: float) -> None:
    """Raise SourceError for a file without a good row or with too many rejected ones."""
    examples = "; ".join(f"line {line}: {reason}" for _, line, reason, _ in first)
    if checked.good == 0:
        raise SourceError(
            f"{path} has no good row ({examples or 'all lines are blank'}). It must contain interactions or items, in "
            "the format that [datasets.<name>.source] of pixrec.toml describes"
        )
    bad, share = checked.stats["bad_lines"], checked.stats["bad_share"]
    if share > allowed:
        raise SourceError(
            f"{path}: {bad:,} of {checked.good + bad:,} lines are rejected, {share:.2%}; max_bad_share allows "
            f"{allowed:.2%}. First: {examples}. {quarantine} lists all of them. Correct the file, or raise "
            "max_bad_share in [ingest] of pixrec.toml"
        )
