"""Rows of raw files: good rows in a DuckDB view, rejected rows in a quarantine table."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from heapq import merge
from itertools import chain, islice, tee
from pathlib import Path
from typing import Any, Final

import duckdb
import polars as pl
import pyarrow.parquet as pq

from pixrec_core import files
from pixrec_core.data.database import CONFIG, literal
from pixrec_core.errors import ArtefactError, SourceError
from pixrec_core.schemas import QUARANTINE_SCHEMA
from pixrec_core.settings import IngestSettings
from pixrec_core.stages import Stats

log = logging.getLogger(__name__)

RAW_CHARACTERS: Final = 200
#: Rule of rows without an id of an item, which say something about their product (`parent`) only.
PHOTO_ROW: Final = "more photos of a product"
_BATCH = 10_000

#: `address`: an http(s) URL, or the path of a local photo if the dataset has a photo folder (`has_local_photos`).
MACROS: Final = r"""
CREATE MACRO address(t) AS CASE
    WHEN regexp_full_match(trim(t), '(?i)https?://[^\s\p{Cc}][^\p{Cc}]*') THEN replace(trim(t), ' ', '%20')
    WHEN has_local_photos() AND regexp_full_match(trim(t), '[^\p{Cc}]+') AND NOT contains(t, '://') THEN trim(t) END;
"""

#: Why a row is rejected: line number and reason.
Fault = tuple[int, str]
#: A row of the quarantine table: file, line number, reason, first characters.
RejectedRow = tuple[str, int, str, str]


@dataclass(frozen=True)
class Balance:
    """Rows that a stage has read, and what became of them.

    Attributes:
        read: number of rows that were read.
        kept: number of them in the artefact.
        rejected: bad rows, by reason.
        dropped: rows that a documented rule leaves out, by rule.
    """

    read: int
    kept: int
    rejected: Mapping[str, int] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lost = self.read - self.kept - sum(self.rejected.values()) - sum(self.dropped.values())
        assert lost == 0, f"{lost} rows are not accounted for: {self}"

    @property
    def stats(self) -> dict[str, Any]:
        """The balance as JSON values, without rules that dropped nothing."""
        counts = asdict(self)
        return counts | {"dropped": {rule: n for rule, n in self.dropped.items() if n}}

    def sentence(self, unit: str) -> str:
        """Return the balance in words: `600 rows read: 590 interactions, 2 rejected (...), 8 duplicates`."""
        rejected = sum(self.rejected.values())
        reasons = "; ".join(
            f"{reason}: {n:,}" if len(self.rejected) > 1 else reason
            for reason, n in sorted(self.rejected.items(), key=lambda each: -each[1])
        )
        parts = [f"{self.kept:,} {unit}"]
        parts += [f"{rejected:,} rejected ({reasons})"] if rejected else []
        parts += [f"{n:,} {rule}" for rule, n in self.dropped.items() if n]
        return f"{self.read:,} rows read: {', '.join(parts)}"


@dataclass(frozen=True)
class RawTable:
    """A raw file that a source has loaded into a DuckDB connection.

    Attributes:
        path: the raw file.
        query: SQL of its rows: the canonical columns, `line` (line number from 1), `fault` (why the source rejects the
            row; NULL for a good row) and `dropped` (the rule that leaves it out; NULL for most;
            `PHOTO_ROW` if its product keeps its values).
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
    """Raw files whose rows have been checked.

    Attributes:
        db: has the view `good`: the canonical columns and `line`, which continues from file to file.
        good: number of good rows.
        stats: bad_lines, bad_share (of the lines that are not blank), truncated.
        read: number of rows that were read.
        rejected: number of bad rows by reason.
        dropped: number of rows that a rule of the source leaves out, by rule.
    """

    db: duckdb.DuckDBPyConnection
    good: int
    stats: Stats
    read: int
    rejected: Mapping[str, int]
    dropped: Mapping[str, int]

    def balance(self, kept: int, rule: str) -> Balance:
        """Return the balance of a stage that keeps `kept` good rows, and leaves out the others by `rule`."""
        return Balance(self.read, kept, self.rejected, {**self.dropped, rule: self.good - kept})


@contextmanager
def checked_rows(
    load: Callable[[duckdb.DuckDBPyConnection, Path], Sequence[RawTable]],
    faults: str,
    quarantine: Path,
    settings: IngestSettings,
) -> Iterator[CheckedTable]:
    """Load raw files, write their rejected rows to `quarantine` (QUARANTINE_SCHEMA) and yield the good ones.

    Memory stays flat: a temporary folder next to `quarantine` takes what does not fit.

    Args:
        load: loads the files into a connection; the folder is for its temporary files.
        faults: SQL of the reason to reject a row, over the canonical columns; NULL for a good row.
        quarantine: the Parquet file to write.
        settings: limits.

    Raises:
        SourceError: a file is missing, no row is good, the share of rejected rows exceeds `max_bad_share`, or a file
            expands past `max_expansion`.
        ArtefactError: the disk or memory is full.
    """
    folder = quarantine.with_name(f".{quarantine.stem}.work")  # a fixed name, so that a rerun removes a killed run's
    files.remove(folder)
    folder.mkdir(parents=True)
    tables: Sequence[RawTable] = ()
    try:
        with duckdb.connect(config=CONFIG | {"temp_directory": str(folder / "spill")}) as db:
            db.execute("SET TimeZone = 'UTC'")  # times without an offset are UTC
            tables = load(db, folder)
            _judge(db, tables, faults)
            rejected, first = _write_quarantine(_rejected_rows(db, tables), quarantine)
            for table in tables:  # one row of the quarantine table stands for all
                rejected += Counter({_kind_of(_lost(table)): table.lost - 1} if table.lost > 1 else {})
            dropped = db.execute(
                "SELECT dropped, count(*) FROM bad WHERE dropped IS NOT NULL GROUP BY dropped ORDER BY dropped"
            ).fetchall()
            (good,) = fetch_row(db, "SELECT count(*) FROM good")
            bad = rejected.total()
            share = bad / max(good + bad, 1)
            stats = {"bad_lines": bad, "bad_share": share, "truncated": any(table.damage for table in tables)}
            checked = CheckedTable(
                db, good, stats, good + bad + sum(n for _, n in dropped), dict(rejected), dict(dropped)
            )
            _check_share(checked, first, tables[0].path, quarantine, settings.max_bad_share)
            yield checked
    except duckdb.Error as error:
        raise ArtefactError(f"{tables[0].path if tables else quarantine} could not be imported: {error}") from error
    finally:
        files.remove(folder)


def _judge(db: duckdb.DuckDBPyConnection, tables: Sequence[RawTable], faults: str) -> None:
    """Create the views `judged` and `good`, and the table `bad` of the rows that are not good, per file.

    A table, since every query of the good rows would otherwise compute the faults of all rows again.
    """
    db.execute("CREATE TABLE bad (file BIGINT, line BIGINT, fault VARCHAR, dropped VARCHAR)")
    before, parts = 0, []
    for number, table in enumerate(tables):
        fault = f"CASE WHEN dropped IS NULL THEN coalesce(fault, {faults}) END"
        db.execute(
            f"""INSERT INTO bad SELECT {number}, * FROM (SELECT line, {fault} AS fault, dropped FROM ({table.query}))
                WHERE fault IS NOT NULL OR dropped IS NOT NULL"""  # noqa: S608
        )
        parts.append(
            f"""SELECT rows.* REPLACE (rows.line + {before} AS line, bad.fault AS fault, bad.dropped AS dropped)
                FROM ({table.query}) AS rows LEFT JOIN bad ON bad.file = {number} AND bad.line = rows.line"""  # noqa: S608
        )
        before += table.lines
    db.execute(f"CREATE VIEW judged AS {' UNION ALL '.join(parts)}")
    db.execute(
        "CREATE VIEW good AS SELECT * EXCLUDE (fault, dropped) FROM judged WHERE fault IS NULL AND dropped IS NULL"
    )


def id_fault(column: str) -> str:
    """Return SQL of why a column is not an id; NULL for an id."""
    text = f"coalesce(\"{column}\", '')"  # the comparison with `!`, which follows the blank, is much faster than `trim`
    return f"""CASE WHEN {text} < '!' AND trim({text}, ' ') = '' THEN '{column} is empty'
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


def _rejected_rows(db: duckdb.DuckDBPyConnection, tables: Sequence[RawTable]) -> Iterator[RejectedRow]:
    """Yield the rows of the quarantine table in the order of the files."""
    for index, table in enumerate(tables):
        path = str(table.path)
        cursor = db.execute(f"SELECT line, fault FROM bad WHERE file = {index} AND fault IS NOT NULL ORDER BY line")  # noqa: S608
        faults, again = tee(merge(iter(cursor.fetchone, None), table.faults))
        lines = table.raw(number for number, _ in again)
        for (number, fault), raw in zip(faults, lines, strict=True):
            if raw.strip():
                yield path, number, (table.explain and table.explain(raw)) or fault, _prefix(raw)
        if table.lost:
            yield path, table.lines, _lost(table), ""
        if table.damage:
            reason = f"the file is damaged and readable only up to here: {table.damage}"
            yield path, table.lines, reason, ""


def _lost(table: RawTable) -> str:
    return f"{table.lost:,} lines of the file belong to no row"


def _kind_of(reason: str) -> str:
    """Return a reason without the value that it names, so that equal reasons can be counted."""
    return "lines of the file belong to no row" if reason.endswith("belong to no row") else reason.partition(": ")[0]


def _prefix(raw: bytes) -> str:
    return raw[: 4 * RAW_CHARACTERS].decode("utf-8", "replace").rstrip("\r\n")[:RAW_CHARACTERS]


def _write_quarantine(rows: Iterator[RejectedRow], path: Path) -> tuple[Counter[str], list[RejectedRow]]:
    """Write all rows in batches; return their number by reason, and the first three."""
    counts: Counter[str] = Counter()
    first = list(islice(rows, 3))
    rows = chain(first, rows)
    with files.replacing(path) as temporary:
        empty = pl.DataFrame(schema=QUARANTINE_SCHEMA).to_arrow()
        with pq.ParquetWriter(temporary, empty.schema) as writer:
            while batch := list(islice(rows, _BATCH)):
                writer.write_table(pl.DataFrame(batch, schema=QUARANTINE_SCHEMA, orient="row").to_arrow())
                counts.update(_kind_of(reason) for _, _, reason, _ in batch)
    return counts, first


def _check_share(checked: CheckedTable, first: list[RejectedRow], path: Path, quarantine: Path, allowed: float) -> None:
    """Raise SourceError for a file without a good row or with too many rejected ones."""
    examples = "; ".join(f"line {line}: {reason}" for _, line, reason, _ in first)
    if checked.good == 0 and checked.dropped and not first:
        rules = ", ".join(f"{n:,} {rule}" for rule, n in checked.dropped.items())
        raise SourceError(
            f"{path}: all rows are left out: {rules}. Correct `where` or the mapping in [datasets.<name>.source] of "
            "pixrec.toml"
        )
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
