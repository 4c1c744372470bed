"""Rows of a CSV or Parquet file, in batches of flat memory, each with its place in the file.

A batch is a `pyarrow.RecordBatch` of the mapped columns under our names for them, and of

`gap`    lines of the file between this row's and the one before it: a header, blank lines, line ends inside quotes;
`fault`  why the row is bad; null where it is not.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, Protocol, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pixrec_core.data import raw_lines
from pixrec_core.data.sources._names import known
from pixrec_core.errors import SourceError
from pixrec_core.settings import IngestSettings

BATCH: Final = 1 << 15  # rows

_PARQUET_MAGIC: Final = b"PAR1"
_PLACE: Final = [pa.field("gap", pa.int64()), pa.field("fault", pa.string())]


class RowReader(Protocol):
    """What `csv.reader` returns."""

    line_num: int

    def __iter__(self) -> Iterator[list[str]]: ...
    def __next__(self) -> list[str]: ...


class Table(Protocol):
    """A file of rows: the Arrow types of its mapped columns, and its batches, from the first one each time."""

    @property
    def schema(self) -> pa.Schema: ...
    def batches(self) -> Iterator[pa.RecordBatch]: ...


def open_table(path: Path, columns: Mapping[str, str], delimiter: str, folder: Path) -> Table:
    """The rows of `path`; `columns` maps our names to the file's. What is packed is unpacked into `folder`.

    Raises:
        SourceError: no such file, neither CSV nor Parquet, or it lacks a column.
    """
    plain = raw_lines.unpack(path, folder, IngestSettings().max_expansion)
    with plain.path.open("rb") as file:
        is_parquet = file.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC
    if is_parquet:
        return _ParquetTable.open(path, columns)
    return _CsvTable.open(path, plain, columns, delimiter)


def _check_columns(path: Path, columns: Mapping[str, str], there: Sequence[str]) -> None:
    for ours, theirs in columns.items():
        if there.count(theirs) != 1:
            state = "more than one column" if theirs in there else "no column"
            raise SourceError(
                f"{path} has {state} {theirs!r}, which [datasets.<name>.source] of pixrec.toml maps to `{ours}`; "
                f"{known(theirs, there)}. Mend the mapping, or `delimiter` if these are no columns"
            )


@dataclass(frozen=True)
class _ParquetTable:
    path: Path
    columns: Mapping[str, str]
    schema: pa.Schema

    @classmethod
    def open(cls, path: Path, columns: Mapping[str, str]) -> "_ParquetTable":
        try:
            there = pq.read_schema(path)
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"{path} is a damaged Parquet file ({error}); write it again") from error
        _check_columns(path, columns, there.names)
        return cls(path, columns, pa.schema([there.field(name).with_name(ours) for ours, name in columns.items()]))

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Row n of the file stands on line n.

        Raises:
            SourceError: the file is damaged.
        """
        names = list(dict.fromkeys(self.columns.values()))
        try:
            with pq.ParquetFile(self.path) as file:
                for batch in file.iter_batches(BATCH, columns=names):
                    place = [pa.array([0] * batch.num_rows), pa.nulls(batch.num_rows, pa.string())]
                    arrays = [batch.column(name) for name in self.columns.values()]
                    yield pa.record_batch([*arrays, *place], names=[*self.columns, "gap", "fault"])
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"{self.path} is a damaged Parquet file ({error}); write it again") from error


@dataclass(frozen=True)
class _CsvTable:
    """CSV with a header, in UTF-8; Python's reader tells the line of each row and goes on after a bad one."""

    path: Path
    plain: raw_lines.PlainFile
    columns: Mapping[str, str]
    delimiter: str

    @classmethod
    def open(cls, path: Path, plain: raw_lines.PlainFile, columns: Mapping[str, str], delimiter: str) -> "_CsvTable":
        table = cls(path, plain, columns, delimiter)
        with table._text() as file:
            _check_columns(path, columns, table._header(table._reader(file)))
        return table

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([pa.field(name, pa.string()) for name in self.columns])

    def _text(self) -> TextIO:
        return self.plain.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")

    def _reader(self, file: TextIO) -> RowReader:
        return csv.reader(file, delimiter=self.delimiter, strict=True)

    def _header(self, reader: RowReader) -> list[str]:
        try:
            return next(reader, [])
        except csv.Error as error:
            raise SourceError(f"{self.path} begins with no header of CSV: {error}") from error

    def batches(self) -> Iterator[pa.RecordBatch]:
        """A row stands on the line that it starts on; the header is on line 1."""
        last = 0
        with self._text() as file:
            reader = self._reader(file)
            header = self._header(reader)
            places = [header.index(name) for name in self.columns.values()]
            while (records := _read(reader, len(header))) is not None:
                yield self._batch(records, places, last)
                last = records.starts[-1] if records.starts else last
            if self.plain.damage:
                fault = f"the file is damaged and readable only up to here: {self.plain.damage}"
                yield self._batch(_Records([max(reader.line_num, last + 1)], [[]], [fault]), places, last)

    def _batch(self, records: "_Records", places: list[int], last: int) -> pa.RecordBatch:
        cells = records.cells(places)
        gaps = np.diff(np.array([last, *records.starts])) - 1
        schema = pa.schema([*self.schema, *_PLACE])
        try:
            return pa.record_batch([*cells, gaps, records.faults], schema=schema)
        except UnicodeEncodeError:
            mended = [[_mended(cell) for cell in column] for column in cells]
            pairs = zip(zip(*cells, strict=True), zip(*mended, strict=True), strict=True)
            faults = [
                fault or ("broken UTF-8" if row != clean else None)
                for fault, (row, clean) in zip(records.faults, pairs, strict=True)
            ]
            return pa.record_batch([*mended, gaps, faults], schema=schema)


@dataclass(frozen=True)
class _Records:
    """Records of CSV: the line that each starts on, its cells, why it is bad (None where it is not)."""

    starts: Sequence[int]
    rows: list[list[str]]
    faults: Sequence[str | None]

    def cells(self, places: list[int]) -> list[Sequence[str | None]]:
        """One column a place; a short row lacks cells."""
        if not any(self.faults):
            return [[row[place] for row in self.rows] for place in places]
        return [[row[place] if place < len(row) else None for row in self.rows] for place in places]

    @classmethod
    def of(cls, starts: Sequence[int], rows: list[list[str]], width: int) -> "_Records":
        """Without blank lines; a row that is not as wide as the header is bad."""
        if set(map(len, rows)) <= {width}:
            return cls(starts[: len(rows)], rows, [None] * len(rows))
        kept = [(start, row) for start, row in zip(starts, rows, strict=False) if row]
        faults = [None if len(row) == width else f"{len(row)} cells where the header has {width}" for _, row in kept]
        return cls([start for start, _ in kept], [row for _, row in kept], faults)


def _read(reader: RowReader, width: int) -> _Records | None:
    """The next records, as many as make a batch, however many of them are bad; None at the end."""
    starts: list[int] = []
    rows: list[list[str]] = []
    faults: list[str | None] = []
    before = reader.line_num
    while len(rows) < BATCH and (part := _read_to_error(reader, width, BATCH - len(rows))):
        starts += part.starts
        rows += part.rows
        faults += part.faults
    return _Records(starts, rows, faults) if reader.line_num > before else None


def _read_to_error(reader: RowReader, width: int, most: int) -> _Records | None:
    """The next records up to one that is no CSV, which comes last, without cells."""
    before, error = reader.line_num, None
    rows: list[list[str]] = []
    try:
        rows.extend(islice(reader, most))  # keeps what came before an error
    except csv.Error as found:
        error = str(found)
    if not rows and not error:
        return None
    one_line_each = reader.line_num - before == len(rows)
    starts = range(before + 1, before + 1 + len(rows)) if one_line_each else _starts(rows, before + 1)
    records = _Records.of(starts, rows, width)
    if not error:
        return records
    start = _starts(rows, before + 1)[-1]
    reach = f" up to line {reader.line_num:,}" if reader.line_num > start else ""
    return _Records([*records.starts, start], [*records.rows, []], [*records.faults, f"no CSV{reach}: {error}"])


def _starts(rows: Sequence[Sequence[str]], first: int) -> list[int]:
    """The line that each row starts on, and the one after the last row."""
    starts = [first]
    for row in rows:
        breaks = sum(cell.count("\n") + cell.count("\r") - cell.count("\r\n") for cell in row)
        starts.append(starts[-1] + 1 + breaks)
    return starts


def _mended(cell: str | None) -> str | None:
    return cell and cell.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
