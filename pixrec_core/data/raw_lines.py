"""Raw files as plain lines that can be counted, even if they are compressed or damaged."""

import codecs
import glob
import gzip
import lzma
import re
import zipfile
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from isal import igzip, isal_zlib

from pixrec_core.errors import SourceError

#: Bytes of one line; DuckDB's JSON reader gives up a whole file for a line of twice this.
LONGEST: Final = 16 << 20
BOM: Final = b"\xef\xbb\xbf"
CHUNK: Final = 1 << 20  # bytes read at a time
UNPACKED: Final = "unpacked"
ALWAYS_ALLOWED: Final = 64 << 20  # bytes that any gzip file may expand to

_STRETCH = 1 << 16  # fits a core's cache; every stretch with a rejected line is read again
_CONTROLS = bytes({*range(32)} - {*b"\x01\t\n\r\x1f"})  # \x01 and \x1f separate cells
_GZIP_MAGIC = b"\x1f\x8b"
_ZIP_MAGIC = b"PK\x03\x04"
_TABLES = (".csv", ".tsv", ".txt", ".parquet", ".jsonl", ".gz", ".zip")  # endings of the files of a folder
#: Longest first: the mark of UTF-32 begins with that of UTF-16.
_MARKS: Final = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_SAVE: Final = "save it as CSV in UTF-8 and name that file"
#: First bytes of files that are no table: what they are, and what to do.
_OTHERS: Final = {
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": ("an Excel workbook", _SAVE),
    b"BZh": ("compressed with bzip2", "unpack it, or compress it with gzip"),
    b"\xfd7zXZ": ("compressed with xz", "unpack it, or compress it with gzip"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "unpack it, or compress it with gzip"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "unpack it and name the file inside"),
    b"Rar!": ("a rar archive", "unpack it and name the file inside"),
    b"SQLite format 3": ("an SQLite database", "export the table as CSV"),
    b"ARROW1": ("an Arrow file", "write it as Parquet"),
    b"%PDF": ("a PDF", "export the table as CSV"),
    b"PK\x05\x06": ("an empty zip archive", _SAVE),
    b"PK\x03\x04": ("an archive inside of another", "unpack it and name the file inside"),
    _GZIP_MAGIC: ("compressed twice", "unpack it once"),
    b"ORC": ("an ORC file", "write it as Parquet"),
    b"Obj\x01": ("an Avro file", "write it as Parquet"),
    b"\x89HDF": ("an HDF5 file", "write it as Parquet"),
    b"\x80\x04\x95": ("a Python pickle", "write it as Parquet"),
    b"{\\rtf": ("formatted text (RTF)", _SAVE),
    b"version https://git-lfs": ("a pointer of Git LFS to the file", "fetch the file: `git lfs pull`"),
    b"PAR1": ("a compressed Parquet file", "unpack it: Parquet is compressed inside"),
}


@dataclass(frozen=True)
class PlainFile:
    """An unpacked file of lines.

    Attributes:
        path: the raw file itself, or a copy that is unpacked and in UTF-8.
        damage: why a gzip file could not be read to its end; None if it is complete.
        encoding: that of the raw file, if it is not UTF-8.
    """

    path: Path
    damage: str | None = None
    encoding: str | None = None


class DamageError(Exception):
    """A gzip file ends before its end, or its checksum is wrong; what came before has been yielded."""


def list_files(path: Path) -> list[Path]:
    """Return the files that a path names, sorted: one file, all tables below a folder, or the matches of `*` and `?`.

    Files whose names begin with `.` or `_` are left out of folders, as tools write them beside tables. A path that
    does not exist is returned, for `require_content` to report.
    """
    if path.is_dir():
        found = sorted(file for file in _visible_files(path) if file.name.lower().endswith(_TABLES))
        return [file for file in found if file.stat().st_size] or found  # Spark writes empty parts
    if path.exists() or not {"*", "?"} & set(str(path)):
        return [path]
    pattern = str(path).replace("[", "[[]")
    found = sorted(Path(name) for name in glob.glob(pattern, recursive=True))  # noqa: PTH207 - an absolute pattern
    return [file for name in found for file in list_files(name)] or [path]


def other_files(path: Path) -> list[Path]:
    """Return the files of a folder that are no tables by their names."""
    others = (file for file in _visible_files(path) if not file.name.lower().endswith(_TABLES))
    return sorted(others) if path.is_dir() else []


def _visible_files(folder: Path) -> Iterator[Path]:
    for file in folder.rglob("*"):
        if file.is_file() and not any(part.startswith((".", "_")) for part in file.relative_to(folder).parts):
            yield file


def is_packed(path: Path) -> bool:
    """Whether a file is gzip, by its first bytes."""
    return starts_with(path, _GZIP_MAGIC)


def starts_with(path: Path, magic: bytes) -> bool:
    """Whether a file begins with these bytes."""
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def unpacked(path: Path) -> Iterator[bytes]:
    """Yield what a gzip file contains, all its members, in pieces of at most `CHUNK` bytes.

    Raises:
        DamageError: the file is truncated or corrupt.
    """
    size = 0
    try:
        with igzip.open(path) as packed:  # type: ignore[no-untyped-call]
            while chunk := packed.read1(CHUNK):
                yield chunk
                size += len(chunk)
    except (EOFError, OSError, isal_zlib.error):  # type: ignore[misc]  # its stub is wrong
        yield from _unpacked_before_damage(path, size)


def _unpacked_before_damage(path: Path, size: int) -> Iterator[bytes]:
    """Yield what a damaged gzip file contains after its first `size` bytes; `igzip` loses the last piece."""
    with gzip.open(path) as packed:
        try:
            packed.seek(size)
            while chunk := packed.read1(CHUNK):
                yield chunk
        except (EOFError, OSError, zlib.error) as error:
            raise DamageError(str(error)) from error


def read_chunks(path: Path) -> tuple[Iterator[bytes], str | None]:
    """Return the content of a file in UTF-8, in chunks, and its encoding if it is another Unicode form.

    A gzip file and the only file of a zip archive are unpacked. Text without a mark of its encoding stays as it is.

    Raises:
        SourceError: the file is a workbook, an archive of several files, or of another kind that is no table.
        DamageError: while the chunks are read: a gzip file is truncated or corrupt.
    """
    chunks: Iterator[bytes] = _raw_chunks(path)
    try:
        first = next(chunks, b"")
    except DamageError:
        return _raw_chunks(path), None
    encoding, chunks = _unicode_form(first), chain([first], chunks)
    if encoding:
        return (text.encode() for text in codecs.iterdecode(chunks, encoding, "replace")), encoding
    _refuse_other_kinds(path, first)
    return chunks, None


def _raw_chunks(path: Path) -> Iterator[bytes]:
    if is_packed(path):
        yield from unpacked(path)
    elif starts_with(path, _ZIP_MAGIC):
        try:
            with zipfile.ZipFile(path) as archive, archive.open(_only_member(path, archive)) as file:
                yield from iter(partial(file.read, CHUNK), b"")
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError) as error:
            raise SourceError(
                f"{path} is a zip archive or an Excel workbook that cannot be read ({error}); save it as CSV in UTF-8 "
                "and name that file"
            ) from error
    else:
        with path.open("rb") as file:
            yield from iter(partial(file.read, CHUNK), b"")


def _only_member(path: Path, archive: zipfile.ZipFile) -> str:
    names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
    if "[Content_Types].xml" in names or "mimetype" in names:
        raise SourceError(f"{path} is a spreadsheet (Excel or OpenDocument), whatever its name says; {_SAVE}")
    tables = [name for name in names if name.lower().endswith((".csv", ".tsv", ".parquet", ".jsonl"))]
    names = tables if len(tables) == 1 else [name for name in names if not name.rpartition("/")[2].startswith(".")]
    if len(names) != 1:
        shown = ", ".join(map(repr, names[:5]))
        raise SourceError(f"{path} is a zip archive of {len(names)} files ({shown}); unpack it and name one of them")
    return names[0]


def _unicode_form(first: bytes) -> str | None:
    """Return UTF-16 or UTF-32, by the mark at the beginning or by the zero bytes of ASCII characters."""
    for mark, encoding in _MARKS.items():
        if first.startswith(mark):
            return encoding
    head = first[:1024]
    even, odd = head[::2].count(0), head[1::2].count(0)
    if max(even, odd) > len(head) // 5 and min(even, odd) == 0:
        return "utf-16-le" if odd else "utf-16-be"
    return None


def _refuse_other_kinds(path: Path, first: bytes) -> None:
    for magic, (kind, fix) in _OTHERS.items():
        if first.startswith(magic):
            raise SourceError(f"{path} is {kind}; {fix}")
    if first[257:262] == b"ustar":
        raise SourceError(f"{path} is a tar archive; unpack it and name the file inside, or its folder")
    if len(first[:1024].translate(None, _CONTROLS)) < 0.9 * len(first[:1024]):
        raise SourceError(f"{path} is a binary file, not a table; {_SAVE}")
    if first.lstrip()[:15].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise SourceError(
            f"{path} is a web page or XML, such as the page of an error or a login; open it, and download or export "
            "the table as CSV"
        )


def unpack(path: Path, folder: Path, max_expansion: float) -> PlainFile:
    """Return the plain form of `path` in UTF-8: a compressed file or UTF-16 is written to `folder`.

    Python unpacks with one thread, but from a plain file DuckDB parses with all. What comes before a damage is kept.

    Raises:
        SourceError: the file is missing, empty or of a kind that is no table, it unpacks to more than `max_expansion`
            times its size (and more than `ALWAYS_ALLOWED` bytes), or the disk is full.
    """
    require_content(path)
    chunks, encoding = read_chunks(path)
    if not (encoding or is_packed(path) or starts_with(path, _ZIP_MAGIC)):
        return PlainFile(path)
    target = folder / UNPACKED
    try:
        with target.open("wb") as plain:
            for chunk in _bounded(path, chunks, max_expansion):
                plain.write(chunk)
    except DamageError as damage:
        return PlainFile(target, str(damage), encoding)
    except OSError as error:
        raise SourceError(f"{path} cannot be unpacked into {folder}: {error.strerror}; free disk space") from error
    return PlainFile(target, None, encoding)


def _bounded(path: Path, chunks: Iterable[bytes], max_expansion: float) -> Iterator[bytes]:
    """Yield chunks up to the bytes that are allowed: a small file may contain a disk full of zeros."""
    packed = path.stat().st_size
    left = max(ALWAYS_ALLOWED, max_expansion * packed)
    for chunk in chunks:
        left -= len(chunk)
        if left < 0:
            raise SourceError(
                f"{path} unpacks to more than {max_expansion:g} times its {packed:,} bytes, as only a corrupt or "
                "hostile file does. If it is valid, unpack it yourself or raise max_expansion in [ingest] of "
                "pixrec.toml"
            )
        yield chunk


def require_content(path: Path) -> None:
    """Raise SourceError for a file that is missing, empty or not readable."""
    fix = "correct [datasets.<name>.source] of pixrec.toml and run the stage `raw` again"
    if re.search("/(https?|ftp|s3|gs|az|abfss?|hdfs):/", str(path)):
        raise SourceError(f"{path} is no local file; download it and name the file in [datasets.<name>.source]")
    if path.is_dir():
        held = ", ".join(repr(file.name) for file in other_files(path)[:5])
        raise SourceError(f"{path} contains no table (CSV, TSV or Parquet){held and f', but {held}'}; {fix}")
    if not path.is_file():
        raise SourceError(f"{path} {'is no regular file' if path.exists() else 'does not exist'}; {fix}")
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise SourceError(f"{path} is empty; {fix}")
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}; make it readable") from error


@dataclass(frozen=True)
class LineIndex:
    """Positions of the lines of a plain file.

    Attributes:
        count: number of lines, blank ones too.
        readable: whether DuckDB can read the file as it is (no BOM, no endless line).
        ends: of each `_STRETCH` bytes of the file, how many line ends there are up to its end.
    """

    count: int
    readable: bool
    ends: "array[int]" = field(repr=False)

    def before(self, stretch: int) -> int:
        """Return the number of line ends before a stretch."""
        return self.ends[stretch - 1] if stretch else 0


def index(path: Path) -> LineIndex:
    """Find the lines of a plain file, in one reading of its bytes."""
    ends, buffer, last = array("q"), bytearray(_STRETCH), b"\n"
    view = np.frombuffer(buffer, np.uint8)  # counts twice as fast as `bytes.count`
    number = gap = widest = 0
    with path.open("rb", buffering=0) as file:
        marked = file.read(len(BOM)) == BOM
        file.seek(0)
        while size := file.readinto(buffer):
            newlines = int(np.count_nonzero(view[:size] == ord("\n")))
            number += newlines
            gap = 0 if newlines else gap + size
            widest = max(widest, gap)
            last = bytes(buffer[size - 1 : size])
            ends.append(number)
    return LineIndex(number + (last != b"\n"), not marked and widest < LONGEST - 2 * _STRETCH, ends)


def lines(path: Path) -> Iterator[bytes]:
    """Lines of a plain file with their line ends; of one longer than `LONGEST`, the first `LONGEST` + 1 bytes."""
    with path.open("rb") as file:
        while line := read_line(file):
            yield line


def pick(path: Path, found: LineIndex, numbers: Iterable[int]) -> Iterator[bytes]:
    """The lines of these numbers (from 1), as `lines` gives them; stretches without any are not read."""
    with path.open("rb") as file:
        for start in line_starts(path, found, numbers):
            file.seek(start)
            yield read_line(file)


def line_starts(path: Path, found: LineIndex, numbers: Iterable[int]) -> Iterator[int]:
    """The bytes (from 0) at which the lines of these numbers (from 1) start."""
    with path.open("rb") as file:
        ends_in = lru_cache(1)(partial(_line_ends, file))
        for number in numbers:
            stretch = bisect_left(found.ends, number - 1)  # where the line before it ends
            end = ends_in(stretch)[number - 2 - found.before(stretch)] if number > 1 else -1
            yield stretch * _STRETCH + int(end) + 1


def line_numbers(path: Path, found: LineIndex, offsets: Iterable[int]) -> list[int]:
    """Return the numbers (from 1) of the lines that contain these bytes (from 0, ascending)."""
    numbers = []
    with path.open("rb") as file:
        ends_in = lru_cache(1)(partial(_line_ends, file))
        for offset in offsets:
            stretch, within = divmod(offset, _STRETCH)
            numbers.append(found.before(stretch) + int(np.searchsorted(ends_in(stretch), within)) + 1)
    return numbers


def _line_ends(file: BinaryIO, stretch: int) -> np.ndarray:
    """Return where the line ends of a stretch are in it."""
    file.seek(stretch * _STRETCH)
    return np.flatnonzero(np.frombuffer(file.read(_STRETCH), np.uint8) == ord("\n"))


def read_line(file: BinaryIO) -> bytes:
    """Read a line, as `lines` gives it."""
    line = rest = file.readline(LONGEST + 1)
    while rest and not rest.endswith(b"\n"):
        rest = file.readline(CHUNK)
    return line


def write_readable(source: Path, target: Path) -> "array[int]":
    """Copy the lines that are not blank, an endless one as `null`, and return their numbers from 1.

    DuckDB skips blank lines, so it would lose count, and gives up at endless ones.
    """
    numbers = array("q")
    with target.open("wb") as file:
        for number, line in enumerate(lines(source), start=1):
            text = line.removeprefix(BOM) if number == 1 else line
            if text.strip():
                numbers.append(number)
                file.write(b"null\n" if len(text) > LONGEST else text)
    return numbers


def blank_runs(path: Path) -> "tuple[array[int], array[int]]":
    """Return the first line, from 1, and the number of lines of each run of blank lines."""
    first, width = array("q"), array("q")
    for number, line in enumerate(lines(path), start=1):
        if not line.strip(b"\r\n"):
            if first and first[-1] + width[-1] == number:
                width[-1] += 1
            else:
                first.append(number)
                width.append(1)
    return first, width
