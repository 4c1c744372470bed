"""Atomic files: a reader sees a whole artefact or none, whenever the writer is killed."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pixrec_core.errors import MissingArtefactError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success the temporary file or folder takes its place.

    The temporary name is fixed, so that what a killed run left is overwritten by the next one
    and never piles up. A folder cannot be replaced in one step by POSIX: the old one is moved
    aside first, and a reader in that instant finds no artefact rather than a mixed one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    remove(temporary)
    yield temporary
    if path.is_dir():
        old = path.with_name(f".{path.name}.old")
        remove(old)
        path.replace(old)
        temporary.replace(path)
        remove(old)
    else:
        temporary.replace(path)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def link(source: Path, target: Path) -> None:
    """Give a file a second name, that keeps its content when another file takes the first one's place.

    Where a file system has no such links, or both names lie on different ones, the file is copied.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as sorted, indented JSON, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file that `write_json` wrote.

    Raises:
        MissingArtefactError: no such file.
    """
    require(path)
    return json.loads(path.read_text(encoding="utf-8"))


def require(path: Path) -> Path:
    """Return `path` if something is there.

    Raises:
        MissingArtefactError: nothing is.
    """
    if not path.exists():
        raise MissingArtefactError(f"{path} is not there; run the stage that makes it first (`pixrec run`)")
    return path


def stat_snapshot(paths: Iterable[Path]) -> dict[str, list[int]]:
    """Size and time of the files that are there: a cheap sign of change."""
    return {str(p): [p.stat().st_size, p.stat().st_mtime_ns] for p in sorted(paths) if p.is_file()}


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
