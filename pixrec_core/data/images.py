"""Photos of the catalogue: fetched with care, stored small, every outcome on record.

The manifest says what came of each URL. It is written last; until then the journal holds the
outcomes, and the photos lie under their final names already.
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

import numpy as np
import polars as pl
from PIL import Image

from pixrec_core import files, progress
from pixrec_core.data import image_manifest, local_photos
from pixrec_core.data.by_host import map_by_host
from pixrec_core.data.downloading import Downloader, Task
from pixrec_core.data.image_journal import FAILED, TRYING, Journal, Outcome
from pixrec_core.engine import LOCAL, Engine
from pixrec_core.errors import ArtefactError
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import IMAGE_URL
from pixrec_core.settings import ImageSettings
from pixrec_core.stages import Stats

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DownloadPartition:
    """What one worker brings, and its part of what may be asked for at a time.

    Attributes:
        number: from 0.
        shares: how many there are.
        threads: downloads at a time.
        per_host: from one host.
    """

    number: int
    shares: int
    threads: int
    per_host: int


def download(settings: ImageSettings, paths: DatasetPaths, engine: Engine = LOCAL) -> Stats:
    """Bring the photo of every item that has a URL, and write the manifest.

    A photo that is there already, of the same URL and size and unchanged, is kept, unless it came
    from a local file that was replaced since; a URL that failed in an earlier run is tried again; a
    killed run goes on where it was, however many workers it had.

    Raises:
        MissingArtefactError: the catalogue or the raw files have not been built.
        SourceError: the folder of local photos is gone.
        ArtefactError: the manifest of an earlier run is damaged.
    """
    start = time.monotonic()
    files.require(paths.items)
    local_photos.photo_folder(paths)
    with Journal(paths.images_journal, settings) as journal:
        for left in paths.images_journals[1:]:
            journal.take_over(left)
        _forget_replaced(paths, journal)
    fetched = sum(engine.map_shards(Fetch(settings, paths), _shares(settings, engine.workers)))
    with files.replacing(paths.images_manifest) as temporary:
        image_manifest.write(paths, settings.size, temporary)
        _remove_orphans(paths, temporary)
    for journal_file in reversed(paths.images_journals):  # the manifest holds it all; the run's own goes last
        files.remove(journal_file)
    return _stats(paths, fetched, time.monotonic() - start)


def _shares(settings: ImageSettings, workers: int) -> list[DownloadPartition]:
    """Parts of the work for so many workers at most: what all of them ask for at a time is what settings allow."""
    count = min(workers, settings.threads, settings.per_host)

    def part(whole: int, number: int) -> int:
        return whole // count + (number < whole % count)

    return [DownloadPartition(n, count, part(settings.threads, n), part(settings.per_host, n)) for n in range(count)]


@dataclass(frozen=True)
class Fetch:
    """What a worker does with its share."""

    settings: ImageSettings
    paths: DatasetPaths

    def __call__(self, share: DownloadPartition) -> int:
        """Settle every URL; returns for how many the network was needed.

        A worker that takes over from one that died finds what that one noted in the share's journal. Nobody writes to
        the run's own while all read it.
        """
        paths, own = self.paths, self.paths.images_journal_of(share.number)
        journals = [paths.images_journal, own]
        wanted = pl.scan_parquet(paths.items).select(pl.col(IMAGE_URL).count()).collect().item() // share.shares
        stop = threading.Event()
        with (
            Journal(own, self.settings) as journal,
            Downloader(self.settings, paths, journal, stop) as downloader,
            closing(image_manifest.known(paths, self.settings.size, journals, share.number, share.shares)) as known,
        ):
            settled = map_by_host(downloader.settle, starmap(Task, known), share.threads, share.per_host, stop)
            return sum(progress.track(settled, "photos", wanted, log))


def _forget_replaced(paths: DatasetPaths, journal: Journal) -> None:
    """Note in the journal which local photos were replaced, and only then the new snapshot: a kill loses none."""
    now = local_photos.stat_snapshot(paths)
    for item, url in local_photos.replaced_photos(paths, now).iter_rows():
        journal.append(Outcome(item, url, TRYING, 0, "replaced"))
    local_photos.write_snapshot(paths, now)


def _remove_orphans(paths: DatasetPaths, manifest: Path) -> None:
    """Remove what no row stands for: photos of items that are gone or fail now, and a killed run's partial files."""
    kept = _prints(str(paths.image(item)) for item in image_manifest.stored(manifest))
    gone = set(np.setdiff1d(_prints(_stored(paths)), kept).tolist())
    for path in _stored(paths) if gone else ():
        if _print(path) in gone:
            files.remove(Path(path))


def _stored(paths: DatasetPaths) -> Iterator[str]:
    return (f"{folder}/{name}" for folder, _, names in os.walk(paths.images) for name in names)


def _prints(names: Iterable[str]) -> np.ndarray:
    """8 bytes for each name, where the names of a million photos would take 100 MB and more."""
    return np.fromiter(map(_print, names), np.uint64)


def _print(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest())


def _stats(paths: DatasetPaths, fetched: int, seconds: float) -> Stats:
    manifest = pl.scan_parquet(paths.images_manifest)
    counted = image_manifest.counts(manifest)
    urls, bytes_, items = (
        frame.collect().item()
        for frame in (
            manifest.select(pl.len()),
            manifest.select(pl.col("bytes").sum()),
            pl.scan_parquet(paths.items).select(pl.len()),
        )
    )
    reasons: dict[str, int] = dict(counted.filter(status=FAILED).drop("status").iter_rows())
    failed = sum(reasons.values())
    if reasons:
        told = ", ".join(f"{reason} ({count})" for reason, count in reasons.items())
        log.warning("%d of %d photos failed: %s", failed, urls, told)
    if local_photos.NO_FOLDER in reasons:
        log.warning(
            "warning: the catalogue names local photos, but the dataset has no photo folder; name it in "
            "[datasets.<name>.source] of pixrec.toml (`photos` or `serve_photos`). The run continues without them"
        )
    return {
        "urls": urls,
        "ok": urls - failed,
        "failed": failed,
        "failed_by_reason": reasons,
        "reused": urls - fetched,
        "items_with_photo_share": (urls - failed) / items if items else 0.0,
        "bytes": bytes_,
        "seconds": round(seconds, 3),
        "photos_per_second": round(fetched / seconds, 1),
    }


def digest(paths: DatasetPaths) -> str:
    """Checksum of the manifest: the data version, since a later run can bring what failed in this one."""
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
