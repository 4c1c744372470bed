"""CSV files, read by DuckDB, with the physical line of every row.

DuckDB reports the byte where a rejected row starts, but no line numbers of good rows. They follow from the row number,
the line breaks inside of quoted cells, and the lines without a row: rejected ones and blank ones. A stray quote makes
DuckDB take the lines behind it for one cell: the line of the quote is rejected and the file is read again without it.
"""

import codecs
import csv
import io
import re
import shutil
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from heapq import merge
from itertools import chain, pairwise
from pathlib import Path
from typing import Final

import duckdb
import numpy as np
import pyarrow as pa

from pixrec_core.data import raw_lines
from pixrec_core.data.database import file_literal, literal
from pixrec_core.data.raw_lines import LineIndex, PlainFile
from pixrec_core.data.raw_table import RawTable, fetch_row
from pixrec_core.data.sources._mapping import Mapping
from pixrec_core.errors import SourceError

LONGEST: Final = 2_000_000  # bytes of a row
MAX_REJECTS: Final = 250_000  # faults of unreadable rows, which DuckDB holds in memory
READINGS: Final = 12  # of a file with stray quotes
HEAD: Final = 8 << 20  # bytes at the start of a file that `load_head` reads
DELIMITERS: Final = ",;\t|\x01^~"
PREAMBLE: Final = 30  # lines above the header, such as the title of a report

_CLEAR: Final = 8  # characters that are not ASCII, from which the kind of encoding is clear
_UNDEFINED: Final = frozenset(chr(0xDC00 + byte) for byte in (0x81, 0x8D, 0x8F, 0x90, 0x9D))  # in Windows-1252

HEADER_BYTES: Final = 1 << 20
_SHAPE_LINES: Final = 100  # first lines that show how ids and times look
_KEYS: Final = ("item", "timestamp")
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
        plain: the file or its beginning, in UTF-8.
        header: names of the columns.
        lines: number of lines of the header, with those above it.
        delimiter: between two cells.
        skip: number of lines above the header: `sep=;`, which Excel may write, or the title of a report.
        encoding: of the file, if it is not UTF-8.
        escape: character before a quote in a quoted cell: another quote, or a backslash.
    """

    path: Path
    plain: Path
    header: Sequence[str]
    lines: int
    delimiter: str
    skip: int = 0
    encoding: str | None = None
    escape: str = '"'

    @classmethod
    def of_file(cls, path: Path, plain: PlainFile, mapping: Mapping) -> "CsvFormat":
        """Read the header of `plain`, the plain form of `path`.

        The delimiter is the one that separates the mapped columns in the header; if several do, the one of the line
        `sep=;`, then the mapping's, then the one with the most columns. If the first line has no mapped column, the
        header is the first of the next lines that has all.

        Raises:
            SourceError: the file does not start with a CSV header.
        """
        with plain.path.open("rb") as file:
            head = file.read(HEADER_BYTES).decode("utf-8-sig", "replace")
        line = re.match(r'"?sep=(.)"?\r?\n', head)
        preferred = line[1] if line else mapping.delimiter
        lines = io.StringIO(head, newline="").readlines()[: PREAMBLE + 1] or [""]
        fault: Exception | str = "it is empty"
        for skip in range(bool(line), len(lines)):
            found: list[tuple[tuple[int, bool, int], CsvFormat]] = []
            text = head[sum(map(len, lines[:skip])) :]
            for each in dict.fromkeys([*(preferred or ""), *DELIMITERS]):
                reader = csv.reader(io.StringIO(text, newline=""), delimiter=each, strict=True)
                try:
                    header = next(reader, [])
                except csv.Error as error:
                    fault = error if skip == bool(line) else fault
                    continue
                known = sum(theirs in mapping.resolved(header) for theirs in mapping.names.values())
                layout = cls(path, plain.path, header, reader.line_num + skip, each, skip, plain.encoding)
                found.append(((known, each == preferred, len(header)), layout))
            if skip == bool(line):
                first = found
            if found and (best := max(found, key=lambda each: each[0]))[0][0] >= (
                1 if found is first else len(mapping.names)
            ):
                return best[1]
        if not first:
            raise SourceError(f"{path} does not start with a CSV header: {fault}")
        layout = max(first, key=lambda each: each[0])[1]
        if layout.header and layout.header[0].lstrip().startswith(("{", "[")):
            raise SourceError(f'{path} is JSON; write it as CSV or Parquet, or in the format of `kind = "amazon_2023"`')
        return layout

    def scan(self, plain: Path, mapping: Mapping, more: Sequence[str], options: str) -> str:
        """Return SQL that reads `plain`: the mapped columns under our names, and the expressions `more`."""
        types = ", ".join(f"{cell}: 'VARCHAR'" for cell in self.cells)
        rows = f"""read_csv({file_literal(plain)}, columns = {{{types}}}, header = true, skip = {self.skip},
            auto_detect = false, delim = {literal(self.delimiter)}, quote = '"', escape = {literal(self.escape)},
            max_line_size = {LONGEST}, compression = 'none', {options})"""
        cells = dict(zip(self.header, self.cells, strict=True))
        return mapping.select(rows, self.header, cells, more)

    @property
    def cells(self) -> list[str]:
        """Names of the columns in SQL."""
        return [f"pixrec_cell_{n}" for n in range(len(self.header))]

    @property
    def line_breaks(self) -> list[str]:
        """SQL of the number of line breaks inside of a row's cells, and of whether a cell may contain other rows."""
        counts = [f"coalesce(length({cell}) - length(replace({cell}, chr(10), '')), 0)" for cell in self.cells]
        separated = (
            f"coalesce(CASE WHEN contains({cell}, chr(10)) THEN contains({cell}, {literal(self.delimiter)}) END, false)"
            for cell in self.cells
        )
        return [f"{' + '.join(counts)} AS breaks", f"{' OR '.join(separated)} AS suspect"]


def load_head(db: duckdb.DuckDBPyConnection, path: Path, mapping: Mapping, folder: Path, number: int) -> CsvFormat:
    """Load the rows in the first `HEAD` bytes into the table `parsed_<number>`, the mapped columns under our names.

    Raises:
        SourceError: as `load_csv`.
    """
    layout = read_layout(path, mapping, folder, HEAD)
    loader = _Loader(db, layout, mapping, "*", folder, number).load(layout.plain)
    (rows,) = fetch_row(db, f"SELECT count(*) FROM parsed_{number}")  # noqa: S608
    if not rows and loader.faults:
        line, reason = min(loader.faults.items())
        raise SourceError(
            f"{path} has no row that can be read; line {line}: {reason}. Correct the file, or `delimiter` in "
            "[datasets.<name>.source] of pixrec.toml"
        )
    return loader.layout


def read_layout(path: Path, mapping: Mapping, folder: Path, size: int) -> CsvFormat:
    """Return the layout of a file, and write its first `size` bytes in UTF-8 into the folder.

    Raises:
        SourceError: as `load_csv`.
    """
    head, left = folder / "head", size
    chunks, unicode = raw_lines.read_chunks(path)
    with head.open("wb") as target, suppress(raw_lines.DamageError):
        for chunk in chunks:
            target.write(chunk[:left])
            left -= len(chunk)
            if left <= 0:
                break
    return _layout(path, PlainFile(head, None, unicode), mapping, folder)


def _layout(path: Path, plain: PlainFile, mapping: Mapping, folder: Path) -> CsvFormat:
    layout = CsvFormat.of_file(path, _readable(path, plain, mapping.encoding, folder), mapping)
    mapping.check(path, layout.header)
    return layout


def load_csv(
    db: duckdb.DuckDBPyConnection,
    path: Path,
    mapping: Mapping,
    select: str,
    folder: Path,
    max_expansion: float,
    number: int = 0,
) -> RawTable:
    """Load a CSV file with a header, plain or compressed.

    Args:
        db: where the table `parsed_<number>` is created.
        path: the file.
        mapping: the file's columns by our names.
        select: SQL of the canonical columns, `fault` and `dropped`, of the mapped columns as texts.
        folder: for temporary files.
        max_expansion: the most that a compressed file may expand, as a multiple of its size.
        number: of the file among those of the table.

    Raises:
        SourceError: the file is missing, empty or no CSV, lacks a column, has too many unreadable rows, or expands
            past `max_expansion`.
    """
    unpacked = raw_lines.unpack(path, folder, max_expansion)
    layout = _layout(path, unpacked, mapping, folder)
    loaded = _Loader(db, layout, mapping, select, folder, number).load(layout.plain)
    return RawTable(
        path,
        loaded.query,
        partial(raw_lines.pick, layout.plain, raw_lines.index(layout.plain)),
        loaded.lines,
        tuple(sorted(loaded.faults.items())),
        lost=loaded.lost,
        damage=unpacked.damage,
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
    """Loads one file into the table `parsed_<number>`; the attributes after `number` are results."""

    db: duckdb.DuckDBPyConnection
    layout: CsvFormat
    mapping: Mapping
    select: str
    folder: Path
    number: int
    faults: dict[int, str] = field(default_factory=dict)
    query: str = ""
    lines: int = 0
    lost: int = 0
    in_cells: bool = False  # whether the table has the column `breaks`

    @property
    def table(self) -> str:
        return f"parsed_{self.number}"

    def load(self, path: Path) -> "_Loader":
        for _ in range(READINGS):
            index = raw_lines.index(path)
            rejects = self._with_better_escape(path, index, self._read(path, index))
            stray = [reject for reject in rejects if reject.swallows]
            if not stray:
                break
            self.faults |= {reject.line: reject.reason for reject in stray}
            path = _without_lines(path, index, {reject.line for reject in stray}, self.folder)
        else:
            raise SourceError(
                f"{self.layout.path} has quotes that are never closed, the first on line {min(self.faults):,}; correct "
                "the file"
            )
        self.lines = index.count
        self._number_rows(path, index, rejects)
        return self

    def _with_better_escape(self, path: Path, index: LineIndex, rejects: list[_Reject]) -> list[_Reject]:
        r"""Read the file again if quotes are escaped as `\"`, and keep what has fewer rejected rows."""
        lines = [reject.line for reject in rejects[:_SHAPE_LINES]]
        if self.layout.escape != '"' or not any(rb"\"" in line for line in raw_lines.pick(path, index, lines)):
            return rejects
        layout, self.layout = self.layout, replace(self.layout, escape="\\")
        others = self._read(path, index)
        if len(others) < len(rejects):
            return others
        self.layout = layout
        return self._read(path, index)

    def _read(self, path: Path, index: LineIndex, parallel: bool = True) -> list[_Reject]:
        """Create the table and return the rejected rows in file order."""
        for table in ("reject_errors", "reject_scans"):
            self.db.execute(f"DROP TABLE IF EXISTS {table}")
        scan = self.layout.scan(
            path,
            self.mapping,
            self.layout.line_breaks if self.in_cells else [],
            f"store_rejects = true, rejects_limit = {MAX_REJECTS + 1}, rejects_line_size_limit = {LONGEST + 1}, "
            f"parallel = {str(parallel).lower()}",
        )
        breaks = ", breaks, suspect" if self.in_cells else ""
        query = f"CREATE OR REPLACE TABLE {self.table} AS SELECT {self.select}{breaks} FROM ({scan}) AS raw"  # noqa: S608
        with self.mapping.reporting_where(self.layout.path):
            self.db.execute(query)
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
        shifts = self._shifts(rejects, ((line, 1) for line in sorted(self.faults)))
        if shifts.lines != index.count:  # the file has blank lines or line breaks in cells
            first, width = raw_lines.blank_runs(path) if len(self.layout.header) > 1 else ([], [])
            self.in_cells = True
            for parallel in (True, False):
                rejects = self._read(path, index, parallel)
                shifts = self._shifts(rejects, zip(first, width, strict=True))
                if shifts.lines == index.count:
                    break
            if swallowing := self._swallowing_lines(path, index, shifts):
                self.faults |= dict.fromkeys(swallowing, _REASONS["UNQUOTED VALUE"])
                self.in_cells = False
                self.load(_without_lines(path, index, swallowing, self.folder))
                return
            for column in ("breaks", "suspect"):
                self.db.execute(f"ALTER TABLE {self.table} DROP COLUMN {column}")
        self.lost = max(index.count - shifts.lines, 0)
        self.faults |= {reject.line: reject.reason for reject in rejects}
        if len(shifts.first) == 1:
            self.query = f"SELECT *, rowid + {shifts.shift[0]} AS line FROM {self.table}"  # noqa: S608
            return
        self.db.register("numbers", pa.RecordBatchReader.from_batches(_LINE, shifts.batches()))
        self.db.execute(f"CREATE OR REPLACE TABLE lines_of_{self.table} AS FROM numbers")
        self.db.unregister("numbers")
        self.query = f"SELECT * FROM {self.table} POSITIONAL JOIN lines_of_{self.table}"  # noqa: S608

    def _swallowing_lines(self, path: Path, index: LineIndex, shifts: "_Shifts") -> set[int]:
        """Return the first lines of rows that two stray quotes have made of several.

        Each line of such a row has the cells of a row, and ids and times that look like those of the first rows.
        """
        query = f"SELECT rowid, breaks FROM {self.table} WHERE suspect ORDER BY rowid"  # noqa: S608
        suspects = self.db.execute(query).fetchall()
        if not suspects:
            return set()
        found = self.mapping.resolved(self.layout.header)
        keys = [
            self.layout.header.index(found[theirs])
            for ours, theirs in self.mapping.names.items()
            if ours in _KEYS and found[theirs] in self.layout.header
        ]
        first = range(self.layout.lines + 1, min(index.count, self.layout.lines + _SHAPE_LINES) + 1)
        usual = [self._cells_of(line) for line in raw_lines.pick(path, index, first) if b'"' not in line]
        shapes = {(key, _shape(cells[key])) for cells in usual if len(cells) == len(self.layout.header) for key in keys}
        lines = set()
        for row, breaks in suspects:
            start = shifts.line_of(row)
            parts = [self._cells_of(part) for part in raw_lines.pick(path, index, range(start, start + breaks + 1))]
            is_row = all(
                len(cells) == len(self.layout.header)
                and any('"' not in cells[key] for key in keys)
                and all('"' in cells[key] or (key, _shape(cells[key])) in shapes for key in keys)
                for cells in parts
            )
            if is_row:
                lines.add(start)
        return lines

    def _cells_of(self, line: bytes) -> list[str]:
        """Return the cells of a line, whatever quotes it has."""
        return line.decode("utf-8", "replace").rstrip("\r\n").split(self.layout.delimiter)

    def _shifts(self, rejects: Iterable[_Reject], blank: Iterable[tuple[int, int]]) -> "_Shifts":
        (rows,) = fetch_row(self.db, f"SELECT count(*) FROM {self.table}")  # noqa: S608
        skips = merge(sorted((reject.line, 1 + reject.breaks) for reject in rejects), blank)
        query = f"SELECT rowid, breaks FROM {self.table} WHERE breaks > 0 ORDER BY rowid"  # noqa: S608
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
        cls, rows: int, line: int, skips: Iterable[tuple[int, int]], long: Sequence[tuple[int, int]]
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

        for start, width in chain(skips, [(sys.maxsize, 0)]):
            while next_long < len(long) and line + long[next_long][0] - row < start:
                place(long[next_long][0] + 1, line + long[next_long][0] - row + 1 + long[next_long][1])
                next_long += 1
            if line <= start < sys.maxsize and row + start - line <= rows:
                place(row + start - line, start + width)
        return cls(first, shift, rows, line + rows - row - 1)

    def line_of(self, row: int) -> int:
        """Return the line of a row."""
        return row + self.shift[bisect_right(self.first, row) - 1]

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the line of each row, in chunks of flat size."""
        ends = self.first[1:] + array("q", [self.rows])
        for begin in range(0, self.rows, _CHUNK_ROWS):
            end = min(begin + _CHUNK_ROWS, self.rows)
            i, j = bisect_right(self.first, begin) - 1, bisect_left(self.first, end)
            counts = np.diff(np.clip([begin, *ends[i:j]], begin, end))
            lines = np.arange(begin, end) + np.repeat(np.array(self.shift[i:j]), counts)
            yield pa.record_batch([lines], schema=_LINE)


def _shape(cell: str) -> str:
    """Return a text with one letter for all runs of letters, and one digit for all runs of digits."""
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "0", cell.strip()))


def _reason(kind: str, message: str) -> str:
    found = re.fullmatch(r"Expected Number of Columns: (\d+) Found: (\d+)", message)
    return f"{found[2]} cells where the header has {found[1]}" if found else _REASONS.get(kind, message)


def _without_lines(path: Path, index: LineIndex, removed: set[int], folder: Path) -> Path:
    """Copy a file with these lines blank, so that all lines keep their numbers."""
    copy = folder / ("without-quotes" if path.name != "without-quotes" else "without-quotes-2")
    with path.open("rb") as source, copy.open("wb") as file:
        for start in raw_lines.line_starts(path, index, sorted(removed)):
            while size := min(start - source.tell(), raw_lines.CHUNK):
                file.write(source.read(size))
            is_dos = raw_lines.read_line(source).endswith(b"\r\n")
            file.write(b"\r\n" if is_dos else b"\n")  # DuckDB gives up at mixed line ends
        shutil.copyfileobj(source, file, raw_lines.CHUNK)
    return copy


def _readable(path: Path, plain: PlainFile, encoding: str | None, folder: Path) -> PlainFile:
    r"""Return `plain`, or a copy in UTF-8 with `\n` for every line end where they are mixed, which DuckDB refuses.

    Text that is not UTF-8 is Windows-1252 if single characters among ASCII letters are, as in Western names.

    Raises:
        SourceError: the encoding is not clear.
    """
    if not plain.encoding:
        letters = None if encoding == "utf-8" else _count_utf8(plain.path)
        if encoding is None and letters is None:
            encoding = _western(path, plain.path)
        elif letters == 0 or (letters or 0) >= _CLEAR:
            encoding = None  # also if another is set: each file has its own
        if encoding and encoding != "utf-8":
            plain = PlainFile(_recoded(path, plain.path, encoding, folder), plain.damage, encoding)
    return replace(plain, path=_with_uniform_line_ends(plain.path, folder))


def _count_utf8(path: Path) -> int | None:
    """Return the number of characters that are not ASCII in UTF-8; None for text that is not UTF-8.

    A truncated last character is no error. Fast for ASCII.
    """
    decoder, letters = codecs.getincrementaldecoder("utf-8")(), 0
    with path.open("rb") as file:
        while chunk := file.read(raw_lines.CHUNK):
            if not chunk.isascii() or decoder.getstate()[0]:
                try:
                    letters += sum(not character.isascii() for character in decoder.decode(chunk))
                except UnicodeDecodeError:
                    return None
    return letters


def _western(path: Path, plain: Path) -> str | None:
    """Return cp1252 for text of one byte per character, None for UTF-8 with broken bytes, which are bad rows.

    Raises:
        SourceError: many characters follow each other that are not ASCII, as in Cyrillic or Chinese text.
    """
    decoded = single = runs = 0
    first = b""
    for line in raw_lines.lines(plain):
        if line.isascii():
            continue
        text = line.decode("utf-8", "surrogateescape")
        broken = [n for n, character in enumerate(text) if "\udc80" <= character <= "\udcff"]
        decoded += sum(not character.isascii() for character in text) - len(broken)
        single += len(broken)
        runs += sum(b - a == 1 for a, b in pairwise(broken))
        first = first or (line if broken else b"")
        undefined = any(text[n] in _UNDEFINED for n in broken)
        if undefined or (single >= _CLEAR and runs > single / 4):
            raise SourceError(
                f"{path} is not UTF-8: {first.strip()[:60]!r}. Set `encoding` in [datasets.<name>.source] of "
                "pixrec.toml, such as cp1251, gb18030 or shift_jis, or save the file as UTF-8"
            )
    return None if decoded else "cp1252"


def _recoded(path: Path, plain: Path, encoding: str, folder: Path) -> Path:
    """Return a copy in UTF-8.

    Raises:
        SourceError: the text is not in this encoding.
    """
    copy = folder / "recoded"
    try:
        with plain.open(encoding=encoding, newline="") as source, copy.open("w", encoding="utf-8", newline="") as file:
            shutil.copyfileobj(source, file, raw_lines.CHUNK)
    except UnicodeError as error:
        raise SourceError(
            f"{path} is not {encoding}: {error}. Correct `encoding` in [datasets.<name>.source] of pixrec.toml"
        ) from error
    return copy


def _with_uniform_line_ends(path: Path, folder: Path) -> Path:
    r"""Return `path`, or a copy with `\n` for every line end where they are mixed, which DuckDB refuses."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("latin-1")(), translate=True)
    with path.open("rb") as source:
        while chunk := source.read(raw_lines.CHUNK):
            decoder.decode(chunk)
    decoder.decode(b"", final=True)
    if decoder.newlines in (None, "\n", "\r\n"):
        return path
    copy = folder / "uniform"
    with path.open(encoding="latin-1") as mixed, copy.open("w", encoding="latin-1", newline="\n") as file:
        shutil.copyfileobj(mixed, file, raw_lines.CHUNK)
    return copy
