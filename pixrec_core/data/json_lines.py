"""JSON lines -> a DuckDB table of the good ones and a quarantine of the bad ones.

DuckDB reads only the named fields of each line, on all cores, and keeps file order, so that row
numbers are line numbers. It says of a line only that it cannot read it: the reasons are found by
Python, for the bad lines alone.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice, tee
from pathlib import Path
from typing import Any, Final

import duckdb
import polars as pl
import pyarrow.parquet as pq

from pixrec_core import files
from pixrec_core.data import raw_lines
from pixrec_core.data.database import CONFIG, literal
from pixrec_core.data.raw_lines import LineIndex, PlainFile
from pixrec_core.errors import SourceError
from pixrec_core.schemas import QUARANTINE_SCHEMA
from pixrec_core.settings import IngestSettings
from pixrec_core.stages import Stats

log = logging.getLogger(__name__)

#: Key of a line that a source wrote for a row which it found bad: the reason.
FAULT: Final = "pixrec_fault"
RAW_CHARACTERS: Final = 200
_BATCH = 10_000

#: A row of the quarantine: file, line number, reason, first characters.
BadLine = tuple[str, int, str, str]

#: Of a JSON value's text (NULL where the line has no such field): a string's content; what is wrong with an id.
_MACROS: Final = r"""
CREATE MACRO text(j) AS CASE WHEN starts_with(j, '"') THEN json_extract_string(j, '$') END;
CREATE MACRO id_fault(name, j) AS CASE
    WHEN j IS NULL THEN name || ' is missing'
    WHEN NOT starts_with(j, '"') THEN name || ' is no text'
    WHEN regexp_full_match(j, '" *"') THEN name || ' is empty'
    WHEN contains(j, '\u0000') AND contains(text(j), chr(0)) THEN name || ' holds a NUL' END;
"""


@dataclass(frozen=True)
class Shape:
    """What to take from one kind of line. SQL sees each field as `raw.<field>`: the text of its JSON value, or NULL.

    Attributes:
        fields: JSON keys to read.
        columns: SQL of each column that is made of them.
        fault: SQL of the reason why a line is bad; NULL for a good one.
        macros: SQL that defines what the others use beside `text` and `id_fault`.
    """

    fields: tuple[str, ...]
    columns: dict[str, str]
    fault: str
    macros: str = ""


@dataclass(frozen=True)
class Parsed:
    """A raw file, read.

    Attributes:
        db: has the view `good`: the shape's columns and `line`, the line number from 1.
        good: number of good lines.
        stats: bad_lines, bad_share (of the lines that are not blank), truncated.
    """

    db: duckdb.DuckDBPyConnection
    good: int
    stats: Stats


@contextmanager
def parse(
    path: Path, shape: Shape, quarantine: Path, settings: IngestSettings, stands_for: Path | None = None
) -> Iterator[Parsed]:
    """Read `path`, plain or gzip; write its bad lines to `quarantine` (QUARANTINE_SCHEMA).

    Where its lines stand for those of a user's own file (`stands_for`), that one is named. Memory stays
    flat; a folder beside `quarantine` takes what does not fit, and goes at the end.

    Raises:
        SourceError: no such file, no good line, a share of bad lines over `max_bad_share`, or a packed file past
            `max_expansion`.
    """
    folder = quarantine.with_name(f".{quarantine.stem}.work")  # a fixed name: a killed run's is cleared by the next
    files.remove(folder)
    folder.mkdir(parents=True)
    named = stands_for or path
    try:
        with duckdb.connect(config=CONFIG | {"temp_directory": str(folder / "spill")}) as db:
            plain = raw_lines.unpack(path, folder, settings.max_expansion)
            index = _load(db, plain.path, shape, folder)
            bad, first = _write_quarantine(_bad_lines(db, named, plain, index), quarantine)
            db.execute(
                "CREATE VIEW good AS SELECT * EXCLUDE (fault), rowid + 1 AS line FROM parsed WHERE fault IS NULL"
            )
            good = fetch_row(db, "SELECT count(*) FROM good")[0]
            share = bad / max(good + bad, 1)
            parsed = Parsed(db, good, {"bad_lines": bad, "bad_share": share, "truncated": plain.damage is not None})
            _judge(parsed, first, named, quarantine, settings.max_bad_share)
            log.info("%s: %s good lines, %s bad", named, f"{good:,}", f"{bad:,}")
            yield parsed
    finally:
        files.remove(folder)


def write(db: duckdb.DuckDBPyConnection, query: str, path: Path) -> None:
    """Write the rows of a query to a Parquet file, atomically."""
    options = "FORMAT parquet, PARQUET_VERSION v2, COMPRESSION zstd, COMPRESSION_LEVEL 1"  # smaller and faster than v1
    with files.replacing(path) as temporary:
        db.execute(f"COPY ({query}) TO {literal(temporary)} ({options})")


def fetch_row(db: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    """The one row of a query."""
    row: tuple[Any, ...]
    (row,) = db.execute(query).fetchall()  # `fetchone` would leave the result open, and it bars `create_function`
    return row


def _load(db: duckdb.DuckDBPyConnection, path: Path, shape: Shape, folder: Path) -> LineIndex:
    """Make the table `parsed`, its n-th row the n-th line; a second reading is for files that break the count."""
    db.execute(_MACROS + shape.macros)
    index = raw_lines.index(path)
    if index.readable and _create(db, path, shape) == index.count:
        return index
    copy = folder / "readable.jsonl"
    raw_lines.write_readable(path, copy)
    rows = _create(db, copy, shape)
    assert rows == index.count, f"{path}: {rows} rows of {index.count} lines"
    return index


def _create(db: duckdb.DuckDBPyConnection, path: Path, shape: Shape) -> int:
    fields = (*shape.fields, FAULT)
    keys = ", ".join(f"{field}: 'JSON'" for field in fields)
    casts = ", ".join(f"{field}::VARCHAR AS {field}" for field in fields)
    columns = ", ".join(f'{sql} AS "{name}"' for name, sql in shape.columns.items())
    (rows,) = fetch_row(
        db,
        f"""CREATE OR REPLACE TABLE parsed AS SELECT {columns}, coalesce(text({FAULT}), {shape.fault}) AS fault FROM (
            SELECT {casts} FROM read_json({literal(path)}, format = 'newline_delimited', compression = 'none',
                maximum_object_size = {raw_lines.LONGEST}, ignore_errors = true, columns = {{{keys}}})) AS raw""",  # noqa: S608
    )
    return int(rows)


def _bad_lines(db: duckdb.DuckDBPyConnection, named: Path, plain: PlainFile, index: LineIndex) -> Iterator[BadLine]:
    """Rows of the quarantine, in file order."""
    cursor = db.execute("SELECT rowid + 1, fault FROM parsed WHERE fault IS NOT NULL ORDER BY rowid")
    faults, again = tee(iter(cursor.fetchone, None))
    lines = raw_lines.pick(plain.path, index, (number for number, _ in again))
    for (number, fault), raw in zip(faults, lines, strict=True):
        if raw.strip():
            yield str(named), number, _why_unreadable(raw) or fault, _shown(raw)
    if plain.damage:
        yield str(named), index.count, f"the file is damaged and readable only up to here: {plain.damage}", ""


def _why_unreadable(raw: bytes) -> str | None:
    """Why a line is no JSON object; None where it is one."""
    if len(raw) > raw_lines.LONGEST:
        return f"longer than {raw_lines.LONGEST:,} bytes"
    if b"\0" in raw:
        return "holds a NUL byte"
    try:
        value = json.loads(raw.decode("utf-8-sig"))
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        return _told(error)
    return None if isinstance(value, dict) else "no JSON object"


def _told(error: Exception) -> str:
    match error:
        case UnicodeDecodeError():
            return f"broken UTF-8 at byte {error.start + 1}"
        case UnicodeEncodeError():
            return "holds half of a surrogate pair"
        case RecursionError():
            return "nested too deeply"
    return f"no JSON: {error}"


def _shown(raw: bytes) -> str:
    return raw[: 4 * RAW_CHARACTERS].decode("utf-8", "replace").rstrip("\r\n")[:RAW_CHARACTERS]


def _write_quarantine(rows: Iterator[BadLine], path: Path) -> tuple[int, list[BadLine]]:
    """Write all rows, however many, in batches; return their number and the first three."""
    count, first = 0, list(islice(rows, 3))
    rows = chain(first, rows)
    with files.replacing(path) as temporary:
        empty = pl.DataFrame(schema=QUARANTINE_SCHEMA).to_arrow()
        with pq.ParquetWriter(temporary, empty.schema) as writer:
            while batch := list(islice(rows, _BATCH)):
                writer.write_table(pl.DataFrame(batch, schema=QUARANTINE_SCHEMA, orient="row").to_arrow())
                count += len(batch)
    return count, first


def _judge(parsed: Parsed, first: list[BadLine], path: Path, quarantine: Path, allowed: float) -> None:
    """Raise SourceError where the file holds no good line or too many bad ones."""
    examples = "; ".join(f"line {line}: {reason}" for _, line, reason, _ in first)
    if parsed.good == 0:
        raise SourceError(
            f"{path} holds no good line ({examples or 'all are blank'}); it must hold reviews or items, in the "
            "shape of Amazon Reviews 2023 or as [datasets.<name>.source] of pixrec.toml maps the columns"
        )
    bad, share = parsed.stats["bad_lines"], parsed.stats["bad_share"]
    if share > allowed:
        raise SourceError(
            f"{path}: {bad:,} of {parsed.good + bad:,} lines are bad, {share:.2%} where max_bad_share allows "
            f"{allowed:.2%}. The first: {examples}. All of them stand in {quarantine}. Mend the file, or raise "
            "max_bad_share in [ingest] of pixrec.toml"
        )
