"""CSV files, read by DuckDB, with the physical line of every row.

DuckDB reports the byte where a rejected row starts, but no line numbers of good rows. They follow from the row number,
the line breaks inside of quoted cells, and the lines without a row: rejected ones and blank ones. A stray quote makes
DuckDB take the lines behind it for one cell: the line of the quote is rejected and the file is read again without it.
"""

import csv
import io
import re
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import duckdb
import numpy as np
import pyarrow as pa

from pixrec_core.data import raw_lines
from pixrec_core.data.database import literal
from pixrec_core.data.raw_lines import LineIndex
from pixrec_core.data.raw_table import RawTable, fetch_row
from pixrec_core.data.sources._names import known
from pixrec_core.errors import SourceError

LONGEST: Final = 2_000_000  # bytes of a row
MAX_REJECTS: Final = 250_000  # faults of unreadable rows, which DuckDB holds in memory
READINGS: Final = 12  # of a file with stray quotes
HEAD: Final = 8 << 20  # bytes at the start of a file that `load_head` reads

_HEADER_BYTES: Final = 1 << 20
_CHUNK_ROWS: Final = 1 << 20
_LINE: Final = pa.schema([pa.field("line", pa.int64())])
#: One row per rejected row: byte where it starts, line breaks inside of it, error, whether its text is cut off.
#: DuckDB starts some of them at the end of the line before. Of too many cells, the last error has their number.
_REJECTS: Final = """
SELECT
    line_byte_position - 1 + strlen(whole) - strlen(ltrim(whole, chr(10) || chr(13))) AS start,
    any_value(length(content) - length(replace(content, chr(10), ''))),
    arg_max(error_type, byte_position),
    arg_max(error_message, byte_position),
    bool_or(whole = ''),
    count(*)
FROM (SELECT *, coalesce(csv_line, '') AS whole, trim(coalesce(csv_line, ''), chr(10) || chr(13)) AS content
    FROM reject_errors)
GROUP BY start ORDER BY start
"""
_QUOTE: Final = ("UNQUOTED VALUE", "LINE SIZE OVER MAXIMUM")
_REASONS: Final = {
    "UNQUOTED VALUE": "a quote is not closed, or text follows a closing quote",
    "LINE SIZE OVER MAXIMUM": f"longer than {LONGEST:,} bytes",
    "INVALID ENCODING": "broken UTF-8",
}


@dataclass(frozen=True)
class CsvFormat:
    """Header and delimiter of a CSV file.

    Attributes:
        path: the file that messages name.
        header: names of the columns.
        lines: number of lines of the header.
        delimiter: between two cells.
    """

    path: Path
    header: Sequence[str]
    lines: int
    delimiter: str

    @classmethod
    def of_file(cls, path: Path, plain: Path, delimiter: str) -> "CsvFormat":
        """Read the header of `plain`, the expanded form of `path`.

        Raises:
            SourceError: the file does not start with a CSV header.
        """
        with plain.open("rb") as file:
            head = file.read(_HEADER_BYTES).decode("utf-8-sig", "replace")
        reader = csv.reader(io.StringIO(head, newline=""), delimiter=delimiter, strict=True)
        try:
            return cls(path, next(reader, []), reader.line_num, delimiter)
        except csv.Error as error:
            raise SourceError(f"{path} does not start with a CSV header: {error}") from error

    def scan(self, plain: Path, columns: Mapping[str, str], more: Sequence[str], options: str) -> str:
        """Return SQL that reads `plain`: the mapped columns under our names, and the expressions `more`."""
        names = [f"c{n}" for n in range(len(self.header))]
        mapped = [f'c{self.header.index(theirs)} AS "{ours}"' for ours, theirs in columns.items()]
        types = ", ".join(f"{name}: 'VARCHAR'" for name in names)
        return f"""SELECT {", ".join([*mapped, *more])} FROM read_csv({literal(plain)}, columns = {{{types}}},
            header = true, auto_detect = false, delim = {literal(self.delimiter)}, quote = '"', escape = '"',
            max_line_size = {LONGEST}, compression = 'none', {options})"""  # noqa: S608

    @property
    def line_breaks(self) -> str:
        """SQL of the number of line breaks inside of a row's cells."""
        counts = (f"coalesce(length(c{n}) - length(replace(c{n}, chr(10), '')), 0)" for n in range(len(self.header)))
        return f"{' + '.join(counts)} AS breaks"


def check_columns(path: Path, columns: Mapping[str, str], header: Sequence[str]) -> None:
    """Raise SourceError for a mapped column that the file has not exactly once."""
    for ours, theirs in columns.items():
        if header.count(theirs) != 1:
            state = "more than one column" if theirs in header else "no column"
            raise SourceError(
                f"{path} has {state} {theirs!r}, which [datasets.<name>.source] of pixrec.toml maps to `{ours}`; "
                f"{known(theirs, header)}. Correct the mapping, or `delimiter` if these are not columns"
            )


def load_head(
    db: duckdb.DuckDBPyConnection, path: Path, columns: Mapping[str, str], delimiter: str, folder: Path
) -> None:
    """Load the rows in the first `HEAD` bytes into the table `parsed`, the mapped columns under our names.

    Raises:
        SourceError: as `load_csv`.
    """
    head, left = folder / "head", HEAD
    with ExitStack() as stack:
        chunks: Iterator[bytes]
        if raw_lines.is_packed(path):
            chunks = raw_lines.unpacked(path)
        else:
            file = stack.enter_context(path.open("rb"))
            chunks = iter(partial(file.read, raw_lines.CHUNK), b"")
        target = stack.enter_context(head.open("wb"))
        with suppress(raw_lines.DamageError):
            for chunk in chunks:
                target.write(chunk[:left])
                left -= len(chunk)
                if left <= 0:
                    break
    readable = _with_uniform_line_ends(head, folder)
    layout = CsvFormat.of_file(path, readable, delimiter)
    check_columns(path, columns, layout.header)
    _Loader(db, layout, columns, "*", folder).load(readable)


def load_csv(
    db: duckdb.DuckDBPyConnection,
    path: Path,
    columns: Mapping[str, str],
    select: str,
    delimiter: str,
    folder: Path,
    max_expansion: float,
) -> RawTable:
    """Load a CSV file in UTF-8 with a header, plain or gzip.

    Args:
        db: where the table `parsed` is created.
        path: the file.
        columns: the file's columns by our names.
        select: SQL of the canonical columns and `fault`, of the mapped columns as texts.
        delimiter: between two cells.
        folder: for temporary files.
        max_expansion: the most that a gzip file may expand, as a multiple of its size.

    Raises:
        SourceError: the file is missing or empty, has no header or lacks a column, has too many unreadable rows, or
            expands past `max_expansion`.
    """
    plain = raw_lines.unpack(path, folder, max_expansion)
    readable = _with_uniform_line_ends(plain.path, folder)
    layout = CsvFormat.of_file(path, readable, delimiter)
    check_columns(path, columns, layout.header)
    loaded = _Loader(db, layout, columns, select, folder).load(readable)
    return RawTable(
        path,
        loaded.query,
        partial(raw_lines.pick, readable, raw_lines.index(readable)),
        loaded.lines,
        tuple(sorted(loaded.faults.items())),
        lost=loaded.lost,
        damage=plain.damage,
    )


@dataclass(frozen=True)
class _Reject:
    """A row that DuckDB could not read: its first line, the line breaks inside of it, why, and whether a quote is."""

    line: int
    breaks: int
    reason: str
    swallows: bool


@dataclass
class _Loader:
    """Loads one file into the table `parsed`; the attributes after `folder` are results."""

    db: duckdb.DuckDBPyConnection
    layout: CsvFormat
    columns: Mapping[str, str]
    select: str
    folder: Path
    faults: dict[int, str] = field(default_factory=dict)
    query: str = ""
    lines: int = 0
    lost: int = 0
    in_cells: bool = False  # whether `parsed` has the column `breaks`

    def load(self, path: Path) -> "_Loader":
        for _ in range(READINGS):
            index = raw_lines.index(path)
            rejects = self._read(path, index)
            stray = [reject for reject in rejects if reject.swallows]
            if not stray:
                break
            self.faults |= {reject.line: reject.reason for reject in stray}
            path = _without_lines(path, {reject.line for reject in stray}, self.folder)
        else:
            raise SourceError(
                f"{self.layout.path} has quotes that are never closed, the first on line {min(self.faults):,}; correct "
                "the file"
            )
        self.lines = index.count
        self._number_rows(path, index, rejects)
        return self

    def _read(self, path: Path, index: LineIndex, parallel: bool = True) -> list[_Reject]:
        """Create the table `parsed` and return the rejected rows in file order."""
        for table in ("reject_errors", "reject_scans"):
            self.db.execute(f"DROP TABLE IF EXISTS {table}")
        scan = self.layout.scan(
            path,
            self.columns,
            [self.layout.line_breaks] if self.in_cells else [],
            f"store_rejects = true, rejects_limit = {MAX_REJECTS + 1}, rejects_line_size_limit = {LONGEST + 1}, "
            f"parallel = {str(parallel).lower()}",
        )
        breaks = ", breaks" if self.in_cells else ""
        self.db.execute(f"CREATE OR REPLACE TABLE parsed AS SELECT {self.select}{breaks} FROM ({scan}) AS raw")  # noqa: S608
        rows = self.db.execute(_REJECTS).fetchall()
        if sum(row[-1] for row in rows) > MAX_REJECTS:
            raise SourceError(
                f"{self.layout.path} has more than {MAX_REJECTS:,} faults in rows that are not CSV with the "
                f"{len(self.layout.header)} columns of the header; the first: {_reason(*rows[0][2:4])}. Correct the "
                "file, or `delimiter` in [datasets.<name>.source] of pixrec.toml"
            )
        lines = raw_lines.line_numbers(path, index, [row[0] for row in rows])
        return [
            _Reject(line, breaks, _reason(kind, message), kind in _QUOTE and (breaks > 0 or cut))
            for line, (_, breaks, kind, message, cut, _) in zip(lines, rows, strict=True)
        ]

    def _number_rows(self, path: Path, index: LineIndex, rejects: list[_Reject]) -> None:
        """Set `query`, whose rows have their lines, and `lost`, and complete `faults`."""
        shifts = self._shifts(rejects, self.faults)
        if shifts.lines != index.count:  # the file has blank lines or line breaks in cells
            blank = list(_blank_lines(path)) if len(self.layout.header) > 1 else []
            self.in_cells = True
            for parallel in (True, False):
                rejects = self._read(path, index, parallel)
                shifts = self._shifts(rejects, blank)
                if shifts.lines == index.count:
                    break
            self.db.execute("ALTER TABLE parsed DROP COLUMN breaks")
        self.lost = max(index.count - shifts.lines, 0)
        self.faults |= {reject.line: reject.reason for reject in rejects}
        if len(shifts.first) == 1:
            self.query = f"SELECT *, rowid + {shifts.shift[0]} AS line FROM parsed"  # noqa: S608
            return
        self.db.register("numbers", pa.RecordBatchReader.from_batches(_LINE, shifts.batches()))
        self.db.execute("CREATE TABLE line_numbers AS FROM numbers")
        self.db.unregister("numbers")
        self.query = "SELECT * FROM parsed POSITIONAL JOIN line_numbers"

    def _shifts(self, rejects: Iterable[_Reject], blank: Iterable[int]) -> "_Shifts":
        (rows,) = fetch_row(self.db, "SELECT count(*) FROM parsed")
        skips = sorted([*((reject.line, 1 + reject.breaks) for reject in rejects), *((line, 1) for line in blank)])
        query = "SELECT rowid, breaks FROM parsed WHERE breaks > 0 ORDER BY rowid"
        return _Shifts.of_rows(
            rows, self.layout.lines + 1, skips, self.db.execute(query).fetchall() if self.in_cells else []
        )


@dataclass(frozen=True)
class _Shifts:
    """Lines of rows: row `n` (from 0) is on line `n + shift[i]` for the last `i` with `first[i] <= n`.

    Attributes:
        rows: number of rows.
        lines: number of lines that rows and skipped lines account for.
    """

    first: "array[int]"
    shift: "array[int]"
    rows: int
    lines: int

    @classmethod
    def of_rows(
        cls, rows: int, line: int, skips: Sequence[tuple[int, int]], long: Sequence[tuple[int, int]]
    ) -> "_Shifts":
        """Place rows on lines.

        Args:
            rows: number of rows.
            line: the first line behind the header.
            skips: stretches of lines without a row, ascending: the first line, the number of lines. Those that begin
                inside of a row are part of it.
            long: rows on more than one line, ascending: the row, the number of its other lines.
        """
        row, next_long = 0, 0
        first, shift = array("q", [0]), array("q", [line])

        def place(new_row: int, new_line: int) -> None:
            nonlocal row, line
            row, line = new_row, new_line
            if first[-1] == row:
                shift[-1] = line - row
            else:
                first.append(row)
                shift.append(line - row)

        for start, width in [*skips, (sys.maxsize, 0)]:
            while next_long < len(long) and line + long[next_long][0] - row < start:
                place(long[next_long][0] + 1, line + long[next_long][0] - row + 1 + long[next_long][1])
                next_long += 1
            if line <= start < sys.maxsize and row + start - line <= rows:
                place(row + start - line, start + width)
        return cls(first, shift, rows, line + rows - row - 1)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the line of each row, in chunks of flat size."""
        ends = [*self.first[1:], self.rows]
        for begin in range(0, self.rows, _CHUNK_ROWS):
            end = min(begin + _CHUNK_ROWS, self.rows)
            i, j = bisect_right(self.first, begin) - 1, bisect_left(self.first, end)
            counts = np.diff(np.clip([begin, *ends[i:j]], begin, end))
            lines = np.arange(begin, end) + np.repeat(np.array(self.shift[i:j]), counts)
            yield pa.record_batch([lines], schema=_LINE)


def _reason(kind: str, message: str) -> str:
    found = re.fullmatch(r"Expected Number of Columns: (\d+) Found: (\d+)", message)
    return f"{found[2]} cells where the header has {found[1]}" if found else _REASONS.get(kind, message)


def _blank_lines(path: Path) -> Iterator[int]:
    return (number for number, line in enumerate(raw_lines.lines(path), start=1) if not line.strip(b"\r\n"))


def _without_lines(path: Path, removed: set[int], folder: Path) -> Path:
    """Copy a file with these lines blank, so that all lines keep their numbers."""
    copy = folder / ("without-quotes" if path.name != "without-quotes" else "without-quotes-2")
    with copy.open("wb") as file:
        for number, line in enumerate(raw_lines.lines(path), start=1):
            file.write(b"\n" if number in removed else line)
    return copy


def _with_uniform_line_ends(path: Path, folder: Path) -> Path:
    r"""Return `path`, or a copy with `\n` for every line end where they are mixed, which DuckDB refuses."""
    carriage, both, feeds, last = 0, 0, 0, b""
    with path.open("rb") as file:
        while chunk := file.read(raw_lines.CHUNK):
            feeds += chunk.count(b"\n")
            if b"\r" in chunk or last == b"\r":
                carriage += chunk.count(b"\r")
                both += chunk.count(b"\r\n") + (last == b"\r" and chunk[:1] == b"\n")
            last = chunk[-1:]
    if carriage in (0, feeds) and both == carriage:
        return path
    copy, last = folder / "uniform", b""
    with path.open("rb") as source, copy.open("wb") as file:
        while chunk := source.read(raw_lines.CHUNK):
            if last == b"\r" and chunk[:1] == b"\n":
                chunk, last = chunk[1:], b"\n"
            last = chunk[-1:] or last
            file.write(chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n"))
    return copy
