"""The images stage: photos of the catalogue, stored small, with an outcome for each.

The manifest has the outcome of each URL and is written last. Until then the journals have the outcomes, and the photos
already have their final names.
"""

import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from PIL import Image

from pixrec_core import files, progress
from pixrec_core.data import image_manifest, local_photos
from pixrec_core.data.downloading import Downloader, Task, map_by_host
from pixrec_core.data.fetching import NOT_ALLOWED, NOT_PUBLIC
from pixrec_core.data.image_manifest import FAILED, REPLACED, TRYING, Journal, Outcome
from pixrec_core.engine import LOCAL, Engine
from pixrec_core.errors import ArtefactError
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import IMAGE_URL
from pixrec_core.settings import ImageSettings
from pixrec_core.stages import Stats

log = logging.getLogger(__name__)

_NETWORK: Final = (
    "Check the network and the host names in the catalogue. Photos that you have as files need no network: name their "
    "folder in [datasets.<name>.source] of pixrec.toml (`photos`)"
)
_REFUSED: Final = (
    "The server refuses our requests: it may want a `User-Agent` or a key, which [images.headers] of pixrec.toml sets"
)

#: What helps if no photo of a dataset can be had, by reason.
REMEDIES: Final = {
    NOT_PUBLIC: "Their server has a private address: if you trust the URLs of the catalogue, set "
    "`allow_private_hosts = true` in [images] of pixrec.toml",
    NOT_ALLOWED: "Add their host to `allow_hosts` in [images] of pixrec.toml, or remove it from `deny_hosts`",
    local_photos.NO_FOLDER: "The catalogue names local photos, but the dataset has no photo folder: name it in "
    "[datasets.<name>.source] of pixrec.toml (`photos` or `serve_photos`)",
    "no such file": "Compare the paths in the catalogue with the photo folder in [datasets.<name>.source] of "
    "pixrec.toml",
    **dict.fromkeys(("unknown host", "connection", "timeout", "deadline", "tls"), _NETWORK),
    **dict.fromkeys(("http 401", "http 403", "http 406", "http 429"), _REFUSED),
}


@dataclass(frozen=True)
class DownloadPartition:
    """The photos of one worker, and its part of the limits.

    Attributes:
        number: from 0.
        partitions: how many there are.
        threads: photos at a time.
        per_host: requests to one host at a time.
    """

    number: int
    partitions: int
    threads: int
    per_host: int


def download_images(settings: ImageSettings, paths: DatasetPaths, engine: Engine = LOCAL) -> Stats:
    """Store the photo of every item that has one, and write the manifest.

    A stored photo with the same URL, size and checksum is kept, unless its local file was replaced or another URL of
    the item comes before it now. A URL that failed in an earlier run is tried again. A killed run is resumed, with any
    number of workers.

    Raises:
        MissingArtefactError: the catalogue or the raw files have not been built.
        SourceError: the folder of local photos does not exist.
        ArtefactError: the manifest of an earlier run is damaged.
    """
    start = time.monotonic()
    files.require(paths.items)
    local_photos.photo_folder(paths)
    with Journal(paths.images_journal, settings) as journal:
        for left in paths.images_journals[1:]:
            journal.move_from(left)
        _log_replaced_photos(paths, journal)
    fetched = sum(engine.map_shards(DownloadTask(settings, paths), split_work(settings, engine.workers)))
    with files.replacing(paths.images_manifest) as temporary:
        image_manifest.write_manifest(paths, settings, temporary)
        _remove_orphans(paths, temporary)
    for journal_file in reversed(paths.images_journals):  # the run's main journal last
        files.remove(journal_file)
    return _stats(paths, fetched, time.monotonic() - start)


def split_work(settings: ImageSettings, workers: int) -> list[DownloadPartition]:
    """One partition per worker, whose limits sum to those of the settings; fewer if a worker would have no request."""
    count = min(workers, settings.threads, settings.per_host)

    def part(total: int, number: int) -> int:
        return total // count + (number < total % count)

    return [DownloadPartition(n, count, part(settings.threads, n), part(settings.per_host, n)) for n in range(count)]


@dataclass(frozen=True)
class DownloadTask:
    """The work of one worker; picklable."""

    settings: ImageSettings
    paths: DatasetPaths

    def __call__(self, partition: DownloadPartition) -> int:
        """Process every photo of a partition; returns how many had to be read or downloaded.

        A worker that replaces a dead one resumes from the partition's journal. The run's main journal is only read.
        """
        paths, own = self.paths, self.paths.images_journal_of(partition.number)
        journals = [paths.images_journal, own]
        urls = pl.scan_parquet(paths.items, glob=False).select(pl.col(IMAGE_URL).count()).collect().item()
        part = (partition.number, partition.partitions)
        stop = threading.Event()
        with (
            Journal(own, self.settings) as journal,
            Downloader(self.settings, paths, journal, stop) as downloader,
            closing(image_manifest.read_wanted(paths, self.settings, journals, *part)) as wanted,
        ):
            tasks = starmap(Task, wanted)
            done = map_by_host(downloader.process, tasks, partition.threads, partition.per_host, stop)
            return sum(progress.track(done, "photos", urls // partition.partitions, log))


def _log_replaced_photos(paths: DatasetPaths, journal: Journal) -> None:
    """Journal the local photos that were replaced before writing the new snapshot, so that a kill loses none."""
    now = local_photos.stat_snapshot(paths)
    for item, url in local_photos.replaced_photos(paths, now).iter_rows():
        journal.append(Outcome(item, url, TRYING, 0, REPLACED))
    local_photos.write_snapshot(paths, now)


def _remove_orphans(paths: DatasetPaths, manifest: Path) -> None:
    """Remove files without a row: photos of items that are gone or fail now, and partial files of a killed run."""
    kept = _hashes(str(paths.image(item)) for item in image_manifest.stored_items(manifest))
    orphans = set(np.setdiff1d(_hashes(_stored_files(paths)), kept).tolist())
    for path in _stored_files(paths) if orphans else ():
        if _hash(path) in orphans:
            files.remove(Path(path))


def _stored_files(paths: DatasetPaths) -> Iterator[str]:
    return (f"{folder}/{name}" for folder, _, names in os.walk(paths.images) for name in names)


def _hashes(names: Iterable[str]) -> np.ndarray:
    """8 bytes per name; the names of a million photos would take more than 100 MB."""
    return np.fromiter(map(_hash, names), np.uint64)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest())


def _stats(paths: DatasetPaths, fetched: int, seconds: float) -> Stats:
    manifest = pl.scan_parquet(paths.images_manifest, glob=False)
    urls, stored_bytes = manifest.select(pl.len(), pl.col("bytes").sum()).collect().row(0)
    items = pl.scan_parquet(paths.items, glob=False).select(pl.len()).collect().item()
    counts = image_manifest.count_outcomes(manifest)
    reasons: dict[str, int] = dict(counts.filter(status=FAILED).drop("status").iter_rows())
    failed = sum(reasons.values())
    if reasons:
        listed = ", ".join(f"{reason} ({count})" for reason, count in reasons.items())
        log.warning("warning: %d of %d photos failed: %s", failed, urls, listed)
    for reason in reasons if failed == urls else ():  # not one photo: the most frequent reason with a remedy
        if remedy := REMEDIES.get(reason):
            log.warning("warning: no photo could be stored. %s. The run continues without photos", remedy)
            break
    return {
        "urls": urls,
        "ok": urls - failed,
        "failed": failed,
        "failed_by_reason": reasons,
        "reused": urls - fetched,
        "items_with_photo_share": (urls - failed) / items if items else 0.0,
        "bytes": stored_bytes,
        "seconds": round(seconds, 3),
        "photos_per_second": round(fetched / seconds, 1),
    }


def manifest_digest(paths: DatasetPaths) -> str:
    """Checksum of the manifest: the stage's data version, since another run can succeed where this one failed."""
    return files.sha256_file(files.require(paths.images_manifest))


def open_photo(paths: DatasetPaths, item: str) -> Image.Image:
    """The stored photo of an item, in RGB.

    Raises:
        MissingArtefactError: the item has no photo.
        ArtefactError: the file is damaged.
    """
    path = files.require(paths.image(item))
    try:
        with Image.open(path) as photo:
            return photo.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise ArtefactError(f"{path}, photo of {item!r}, is damaged ({error}); remove it and run `images`") from error
