"""Raw files as plain lines that can be counted, even if they are compressed or damaged."""

import gzip
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from pixrec_core.errors import SourceError

#: Bytes of one line; DuckDB's JSON reader gives up a whole file for a line of twice this.
LONGEST: Final = 16 << 20
BOM: Final = b"\xef\xbb\xbf"
CHUNK: Final = 1 << 20  # bytes read at a time
UNPACKED: Final = "unpacked"
ALWAYS_ALLOWED: Final = 64 << 20  # bytes that any gzip file may expand to

_STRETCH = 1 << 18  # fits a core's cache
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class PlainFile:
    """A file of lines, unpacked.

    Attributes:
        path: the raw file itself, or its unpacked copy.
        damage: why the packed file ends before its end; None where it is whole.
    """

    path: Path
    damage: str | None = None


class DamageError(Exception):
    """A packed file ends before its end, or its checksum is wrong; what came before has been yielded."""


def is_packed(path: Path) -> bool:
    """Whether a file is gzip, by its first bytes."""
    with path.open("rb") as file:
        return file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC


def unpacked(path: Path) -> Iterator[bytes]:
    """What a gzip file holds, all its members, in pieces of at most `CHUNK` bytes.

    Raises:
        DamageError: the file is cut short or spoilt.
    """
    with gzip.open(path) as packed:
        try:
            while chunk := packed.read1(CHUNK):  # `read` would lose what it holds when the stream breaks off
                yield chunk
        except (EOFError, OSError, zlib.error) as error:
            raise DamageError(str(error)) from error


def unpack(path: Path, folder: Path, max_expansion: float) -> PlainFile:
    """The plain form of `path`: gzip, known by its first bytes, is unpacked into `folder`.

    One thread unpacks anyway; from a plain file DuckDB then parses with all of them. What comes
    before a damage is kept.

    Raises:
        SourceError: the file is not there or empty, it unpacks to more than `max_expansion` times its size (and
            more than `ALWAYS_ALLOWED` bytes), or the disk is full.
    """
    require_content(path)
    if not is_packed(path):
        return PlainFile(path)
    target = folder / UNPACKED
    chunks = _bounded(path, max_expansion)
    try:
        with target.open("wb") as plain:
            for chunk in chunks:
                plain.write(chunk)
    except DamageError as damage:
        return PlainFile(target, str(damage))
    except OSError as error:
        raise SourceError(f"{path} cannot be unpacked into {folder}: {error.strerror}; make room and go on") from error
    return PlainFile(target)


def _bounded(path: Path, max_expansion: float) -> Iterator[bytes]:
    """`unpacked`, up to the bytes that are allowed: a small file may hold a disk full of zeros."""
    packed = path.stat().st_size
    left = max(ALWAYS_ALLOWED, max_expansion * packed)
    for chunk in unpacked(path):
        left -= len(chunk)
        if left < 0:
            raise SourceError(
                f"{path} unpacks to more than {max_expansion:g} times its {packed:,} bytes, as only a spoilt or "
                "hostile file does. If it is in order, unpack it yourself or raise "
                "max_expansion in [ingest] of pixrec.toml"
            )
        yield chunk


def require_content(path: Path) -> None:
    """Raise SourceError for a file that is missing or empty."""
    if not path.is_file() or path.stat().st_size == 0:
        state = "is empty" if path.is_file() else "does not exist"
        raise SourceError(
            f"{path} {state}; correct [datasets.<name>.source] of pixrec.toml and run the stage `raw` again"
        )


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
        while line := _read_line(file):
            yield line


def pick(path: Path, found: LineIndex, numbers: Iterable[int]) -> Iterator[bytes]:
    """The lines of these numbers (from 1, ascending), as `lines` gives them; stretches without any are not read."""
    with path.open("rb") as file:
        here = 1  # number of the line at the position of `file`
        for number in numbers:
            stretch = bisect_left(found.ends, number - 1)  # where the line before it ends
            first = found.ends[stretch - 1] + 2 if stretch else 1  # the first line that starts behind a seen line end
            if first > here:
                file.seek(stretch * _STRETCH)
                _read_line(file)
                here = first
            for _ in range(number - here):
                _read_line(file)
            here = number + 1
            yield _read_line(file)


def line_numbers(path: Path, found: LineIndex, offsets: Iterable[int]) -> list[int]:
    """Return the numbers (from 1) of the lines that contain these bytes (from 0, ascending)."""
    numbers, loaded, ends = [], -1, np.empty(0, np.int64)
    with path.open("rb") as file:
        for offset in offsets:
            stretch, within = divmod(offset, _STRETCH)
            if stretch != loaded:
                file.seek(stretch * _STRETCH)
                ends, loaded = np.flatnonzero(np.frombuffer(file.read(_STRETCH), np.uint8) == ord("\n")), stretch
            before = found.ends[stretch - 1] if stretch else 0
            numbers.append(before + int(np.searchsorted(ends, within)) + 1)
    return numbers


def _read_line(file: BinaryIO) -> bytes:
    line = rest = file.readline(LONGEST + 1)
    while rest and not rest.endswith(b"\n"):
        rest = file.readline(CHUNK)
    return line


def write_readable(source: Path, target: Path) -> None:
    """Copy lines for DuckDB, which skips blank lines and so would lose count: they and endless ones become `null`."""
    with target.open("wb") as file:
        for number, line in enumerate(lines(source), start=1):
            text = line.removeprefix(BOM) if number == 1 else line
            file.write(b"null\n" if not text.strip() or len(text) > LONGEST else text)
