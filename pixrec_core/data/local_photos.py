"""Photos that a dataset brings along: a file that was replaced is seen, though its name and URL stay.

The sign of a file is its size and time, as everywhere outside the pipeline. Only files that the
catalogue names are looked at, so that nothing else in the folder counts: one `stat` a photo.
"""

import hashlib
import os
from typing import Final
from urllib.parse import unquote

import numpy as np
import polars as pl

from pixrec_core import files
from pixrec_core.data import raw_files
from pixrec_core.data.sources import LOOPBACK_HOST
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import IMAGE_URL, ITEM

_SIGN: Final = ("bytes", "modified_ns")  # nanoseconds since 1970; both -1 where there is no file
_PREFIX: Final = f"http://{LOOPBACK_HOST}/"
_KEY: Final = (ITEM, "url")


def signs(paths: DatasetPaths) -> pl.DataFrame:
    """Item, url, bytes and modified_ns of each item whose URL leads into the dataset's own folder, sorted by item.

    Raises:
        MissingArtefactError: the catalogue or the raw files have not been made.
    """
    folder = raw_files.locate(paths).photos
    catalogue = pl.scan_parquet(files.require(paths.items)).select(ITEM, url=IMAGE_URL)
    own = catalogue.filter(pl.col("url").str.starts_with(_PREFIX) & (folder is not None)).sort(ITEM).collect()
    found = np.full((own.height, len(_SIGN)), -1)
    for row, url in enumerate(own["url"] if folder else ()):
        found[row] = _sign(f"{folder}/{unquote(url.removeprefix(_PREFIX).partition('?')[0])}")
    return own.with_columns(pl.Series(name, found[:, column]) for column, name in enumerate(_SIGN))


def _sign(path: str) -> tuple[int, int]:
    try:
        stat = os.stat(path)  # noqa: PTH116  # a Path for each of a million files costs as much as the call
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def digest(paths: DatasetPaths) -> str | None:
    """Checksum of all signs; None where photos come from the web."""
    if raw_files.locate(paths).photos is None:
        return None
    return hashlib.sha256(signs(paths).select(_SIGN).to_numpy().tobytes()).hexdigest()


def replaced(paths: DatasetPaths, now: pl.DataFrame) -> pl.DataFrame:
    """Item and url of the photos whose sign in `now` is another one than `note` has noted."""
    if not paths.photo_signs.exists():
        return now.select(_KEY).clear()
    changed = pl.any_horizontal(pl.col(name) != pl.col(f"{name}_before") for name in _SIGN)
    return now.join(pl.read_parquet(paths.photo_signs), on=_KEY, suffix="_before").filter(changed).select(_KEY)


def note(paths: DatasetPaths, now: pl.DataFrame) -> None:
    """Keep the signs for the next run."""
    with files.replacing(paths.photo_signs) as temporary:
        now.write_parquet(temporary)
