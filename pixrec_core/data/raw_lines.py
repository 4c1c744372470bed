"""Raw files as plain, countable lines, whatever they are packed in and however they are damaged."""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pixrec_core.errors import SourceError

#: Bytes of one line; DuckDB's JSON reader gives up a whole file for a line of twice this.
LONGEST: Final = 16 << 20
BOM: Final = b"\xef\xbb\xbf"

_CHUNK = 1 << 20
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


def unpack(path: Path, folder: Path) -> PlainFile:
    """The plain form of `path`: gzip, known by its first bytes, is unpacked into `folder`.

    One thread unpacks anyway; from a plain file DuckDB then parses with all of them. What comes
    before a damage is kept.

    Raises:
        SourceError: the file is not there or empty.
    """
    if not path.is_file() or path.stat().st_size == 0:
        state = "is empty" if path.is_file() else "is not there"
        raise SourceError(f"{path} {state}; mend [datasets.<name>.source] of pixrec.toml and run the stage `raw` again")
    with path.open("rb") as file:
        if file.read(len(_GZIP_MAGIC)) != _GZIP_MAGIC:
            return PlainFile(path)
    target = folder / "unpacked.jsonl"
    with gzip.open(path) as packed, target.open("wb") as plain:
        try:
            while chunk := packed.read1(_CHUNK):  # `read` would lose what it holds when the stream breaks off
                plain.write(chunk)
        except (EOFError, OSError, zlib.error) as error:
            return PlainFile(target, str(error))
    return PlainFile(target)


def count(path: Path) -> tuple[int, bool]:
    """Lines of a plain file, blank ones too, and whether DuckDB can read it as it is (no BOM, no endless line)."""
    number = gap = widest = 0
    last = b"\n"
    with path.open("rb") as file:
        marked = file.read(len(BOM)) == BOM
        file.seek(0)
        while chunk := file.read(_CHUNK):
            newlines = chunk.count(b"\n")
            number += newlines
            gap = 0 if newlines else gap + len(chunk)
            widest = max(widest, gap)
            last = chunk[-1:]
    return number + (last != b"\n"), not marked and widest < LONGEST - 2 * _CHUNK


def lines(path: Path) -> Iterator[bytes]:
    """Lines of a plain file with their line ends; of one longer than `LONGEST`, the first `LONGEST` + 1 bytes."""
    with path.open("rb") as file:
        while line := file.readline(LONGEST + 1):
            yield line
            while line and not line.endswith(b"\n"):
                line = file.readline(_CHUNK)


def write_readable(source: Path, target: Path) -> None:
    """Copy lines for DuckDB, which skips blank lines and so would lose count: they and endless ones become `null`."""
    with target.open("wb") as file:
        for number, line in enumerate(lines(source), start=1):
            text = line.removeprefix(BOM) if number == 1 else line
            file.write(b"null\n" if not text.strip() or len(text) > LONGEST else text)
