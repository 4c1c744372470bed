"""Rows of a CSV or Parquet file, in batches of flat memory, each with its place in the file.

A batch is a `pyarrow.RecordBatch` of the mapped columns under our names for them, and of

`gap`    lines of the file between this row's and the one before it: a header, blank lines, line ends inside quotes;
`fault`  why the row is bad; null where it is not.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Final, Protocol, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from pixrec_core.data import raw_lines
from pixrec_core.data.sources._names import known
from pixrec_core.errors import SourceError
from pixrec_core.settings import IngestSettings

BATCH: Final = 1 << 16  # rows

_PARQUET_MAGIC: Final = b"PAR1"
_PLACE: Final = [pa.field("gap", pa.int64()), pa.field("fault", pa.string())]

#: A CSV record: the line that it starts on, its cells, why it is bad.
Record = tuple[int, list[str], str | None]


class Reader(Protocol):
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
            _check_columns(path, columns, table._header(csv.reader(file, delimiter=delimiter)))
        return table

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([pa.field(name, pa.string()) for name in self.columns])

    def _text(self) -> TextIO:
        return self.plain.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")

    def _header(self, reader: Iterator[list[str]]) -> list[str]:
        try:
            return next(reader, [])
        except csv.Error as error:
            raise SourceError(f"{self.path} begins with no header of CSV: {error}") from error

    def batches(self) -> Iterator[pa.RecordBatch]:
        """A row stands on the line that it starts on; the header is on line 1."""
        last = 0
        with self._text() as file:
            reader = csv.reader(file, delimiter=self.delimiter, strict=True)
            header = self._header(reader)
            places = [header.index(name) for name in self.columns.values()]
            while records := _records(reader, len(header)):
                yield self._batch([record for record in records if record[1] or record[2]], places, last)
                last = records[-1][0]
            if self.plain.damage:
                fault = f"the file is damaged and readable only up to here: {self.plain.damage}"
                yield self._batch([(max(reader.line_num, last + 1), [], fault)], places, last)

    def _batch(self, records: list[Record], places: list[int], last: int) -> pa.RecordBatch:
        starts = [last, *(start for start, _, _ in records)]
        gaps = [start - before - 1 for before, start in pairwise(starts)]
        cells = [[row[place] if place < len(row) else None for _, row, _ in records] for place in places]
        faults = [fault for _, _, fault in records]
        schema = pa.schema([*self.schema, *_PLACE])
        try:
            return pa.record_batch([*cells, gaps, faults], schema=schema)
        except UnicodeEncodeError:
            mended = [[_mended(cell) for cell in column] for column in cells]
            broken = [
                row != clean for row, clean in zip(zip(*cells, strict=True), zip(*mended, strict=True), strict=True)
            ]
            faults = [fault or ("broken UTF-8" if bad else None) for fault, bad in zip(faults, broken, strict=True)]
            return pa.record_batch([*mended, gaps, faults], schema=schema)


def _records(reader: Reader, width: int) -> list[Record]:
    """The next records; empty at the end. A blank line is a record of no cells."""
    before, error = reader.line_num, None
    rows: list[list[str]] = []
    try:
        rows.extend(islice(reader, BATCH))  # keeps what came before an error
    except csv.Error as found:
        error = str(found)
    starts: Sequence[int] = range(before + 1, before + 1 + len(rows))
    if reader.line_num - before != len(rows):
        starts = _starts(rows, before + 1)
    records = [(start, row, _width_fault(row, width)) for start, row in zip(starts, rows, strict=False)]
    if error:
        start = _starts(rows, before + 1)[-1]
        reach = f" up to line {reader.line_num:,}" if reader.line_num > start else ""
        records.append((start, [], f"no CSV{reach}: {error}"))
    return records


def _starts(rows: Sequence[Sequence[str]], first: int) -> list[int]:
    """The line that each row starts on, and the one after the last row."""
    starts = [first]
    for row in rows:
        breaks = sum(cell.count("\n") + cell.count("\r") - cell.count("\r\n") for cell in row)
        starts.append(starts[-1] + 1 + breaks)
    return starts


def _width_fault(row: Sequence[str], width: int) -> str | None:
    return f"{len(row)} cells where the header has {width}" if row and len(row) != width else None


def _mended(cell: str | None) -> str | None:
    return cell and cell.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
