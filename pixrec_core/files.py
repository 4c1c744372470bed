"""Atomic files: a reader sees a complete artefact or none, even if the writer is killed."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pixrec_core.errors import ArtefactError, MissingArtefactError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success that file or folder replaces `path`.

    The temporary name is fixed, so the next run overwrites the remains of a killed one. POSIX cannot replace a folder
    in one step: the old one is renamed first, and a reader in that instant finds no artefact.
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
    """Remove a file or a folder; a missing one is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def link(source: Path, target: Path) -> None:
    """Create a hard link, which keeps its content if another file replaces `source`; copy the file if that fails."""
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
    """Read a JSON file.

    Raises:
        MissingArtefactError: the file does not exist.
        ArtefactError: the file holds no JSON.
    """
    require(path)
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError, IsADirectoryError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ArtefactError(f"{path} is damaged ({reason}); run the stage that builds it with --force") from error


def require(path: Path) -> Path:
    """Return `path`.

    Raises:
        MissingArtefactError: the path does not exist.
    """
    if not path.exists():
        raise MissingArtefactError(f"{path} does not exist; run the stage that builds it (`pixrec run`)")
    return path


def stat_snapshot(paths: Iterable[Path]) -> dict[str, list[int]]:
    """Size in bytes and modification time in nanoseconds of each existing file: detects changes without reading."""
    return {str(p): [p.stat().st_size, p.stat().st_mtime_ns] for p in sorted(paths) if p.is_file()}


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
