"""Photos that a dataset brings as files: which catalogue entries they are, how they are read, and which were replaced.

`image_url` of an item is either an http(s) URL or the path of a file, relative to the dataset's photo folder. Paths
come from strangers: nothing outside the folder is ever opened.

A replaced file is detected by its size and modification time (`files.stat_snapshot`), which costs one `stat` per photo
that the catalogue names.
"""

import hashlib
import os
import stat
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import numpy as np
import polars as pl

from pixrec_core import files
from pixrec_core.data import raw_files
from pixrec_core.data.photos import PhotoError
from pixrec_core.errors import SourceError
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import IMAGE_URL, ITEM, OTHER_IMAGE_URLS

NO_FOLDER: Final = "no photo folder"
IMAGES: Final = "images"  # folder in that of an Amazon dataset; like the photo folder, it may be a symbolic link

_STAT: Final = ("bytes", "modified_ns")  # nanoseconds since 1970; both -1 if there is no file
_KEY: Final = (ITEM, "url")
_OLD_PREFIX: Final = "http://127.0.0.1:PORT/"  # of local photos in catalogues that older versions wrote


def local_path(image_url: str) -> str | None:
    """Path of a local photo, relative to the photo folder; None if `image_url` is a URL."""
    if image_url.startswith(_OLD_PREFIX):
        return unquote(image_url.removeprefix(_OLD_PREFIX).partition("?")[0])
    return None if "://" in image_url else image_url


def is_local(image_url: pl.Expr) -> pl.Expr:
    """`local_path(...) is not None` as an expression; null for null."""
    return image_url.str.starts_with(_OLD_PREFIX) | ~image_url.str.contains("://", literal=True)


def photo_folder(paths: DatasetPaths) -> Path | None:
    """Folder of the dataset's local photos; None if all its photos are on the web.

    Raises:
        MissingArtefactError: the raw stage has not run.
        SourceError: the folder is gone.
    """
    folder = raw_files.locate(paths).photos
    if folder is not None and not folder.is_dir():
        raise SourceError(
            f"the photo folder {folder} of {paths.root.name} does not exist; restore it, or correct "
            "[datasets.<name>.source] in pixrec.toml and run `raw` again"
        )
    return folder


def read_photo(folder: Path | None, path: str, max_bytes: int) -> bytes:
    """Bytes of a local photo.

    `path` is relative to the photo folder, as the catalogue has it. A file of more than `max_bytes` is refused.

    Raises:
        PhotoError: "no photo folder", "outside the photo folder" (an absolute path, a `..`, or a symbolic link that
            leads out, other than the folder `images` itself), "no such file", "unreadable file" or "too many bytes".
    """
    if folder is None:
        raise PhotoError(NO_FOLDER)
    if path.startswith("/") or ".." in path.split("/"):
        raise PhotoError("outside the photo folder")
    try:
        target = os.path.realpath(folder / path)
        roots = {os.path.realpath(folder), os.path.realpath(folder / IMAGES)}
        if not any(os.path.commonpath([root, target]) == root for root in roots):
            raise PhotoError("outside the photo folder")
        with open(target, "rb", opener=_open) as file:  # Path.open has no opener
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise PhotoError("no such file")
            body = file.read(max_bytes + 1)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):  # ValueError: a NUL in the name
        raise PhotoError("no such file") from None
    except OSError as error:
        raise PhotoError("unreadable file") from error
    if len(body) > max_bytes:
        raise PhotoError("too many bytes")
    return body


def _open(path: str, flags: int) -> int:
    """No symbolic link, since the path is resolved; not blocking, since opening a named pipe waits for a writer."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def stat_snapshot(paths: DatasetPaths) -> pl.DataFrame:
    """Item, url, file, bytes and modified_ns of each local photo of an item, sorted by item.

    `url` is the first photo of the item, local or not; `file` is that one or another, which is used if it fails.

    Raises:
        MissingArtefactError: the catalogue or the raw files have not been built.
    """
    folder = raw_files.locate(paths).photos
    photos = pl.concat_list(IMAGE_URL, pl.col(OTHER_IMAGE_URLS).fill_null([]))
    catalogue = pl.scan_parquet(files.require(paths.items), glob=False).select(ITEM, url=IMAGE_URL, file=photos)
    named = catalogue.explode("file").filter(is_local(pl.col("file")) & (folder is not None))
    local = named.sort(ITEM, maintain_order=True).collect()
    found = np.full((local.height, len(_STAT)), -1)
    for row, file in enumerate(local["file"] if folder else ()):
        found[row] = _stat(f"{folder}/{local_path(file)}")
    return local.with_columns(pl.Series(name, found[:, column]) for column, name in enumerate(_STAT))


def _stat(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)  # noqa: PTH116  # a Path for each of a million files costs as much as the call
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return -1, -1
    return found.st_size, found.st_mtime_ns


def snapshot_digest(paths: DatasetPaths) -> str | None:
    """Checksum of the snapshot; None if all photos are on the web."""
    if raw_files.locate(paths).photos is None:
        return None
    return hashlib.sha256(stat_snapshot(paths).select(_STAT).to_numpy().tobytes()).hexdigest()


def replaced_photos(paths: DatasetPaths, now: pl.DataFrame) -> pl.DataFrame:
    """Item and url of the photos with a file whose row in `now` differs from the one that `write_snapshot` kept."""
    if not paths.photo_snapshot.exists():
        return now.select(_KEY).clear()
    before = pl.read_parquet(paths.photo_snapshot, glob=False)
    if before.schema != now.schema:  # of an older version
        return now.select(_KEY).clear()
    changed = pl.any_horizontal(pl.col(name) != pl.col(f"{name}_before") for name in _STAT)
    return (
        now.join(before, on=[*_KEY, "file"], suffix="_before").filter(changed).select(_KEY).unique(maintain_order=True)
    )


def write_snapshot(paths: DatasetPaths, now: pl.DataFrame) -> None:
    """Keep the snapshot for the next run."""
    with files.replacing(paths.photo_snapshot) as temporary:
        now.write_parquet(temporary)
