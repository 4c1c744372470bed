"""Photos of the catalogue: fetched with care, stored small, every outcome on record.

The manifest says what came of each URL. It is written last; until then the journal holds the
outcomes, and the photos lie under their final names already.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl
from PIL import Image

from pixrec_core import files, progress
from pixrec_core.data import local_photos, raw_files
from pixrec_core.data.by_host import map_by_host
from pixrec_core.data.downloading import Downloader, Task
from pixrec_core.data.image_journal import FAILED, OK, TRYING, Journal, Outcome, newest, outcomes
from pixrec_core.data.photo_server import serving
from pixrec_core.engine import LOCAL, Engine
from pixrec_core.errors import ArtefactError
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import IMAGE_SCHEMA, IMAGE_URL, ITEM
from pixrec_core.settings import ImageSettings
from pixrec_core.stages import Stats

SIZE_KEY: Final = "pixrec.size"  # in the manifest's file metadata: the setting that its photos were made with

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Share:
    """What one worker brings, and its part of what may be asked for at a time.

    Attributes:
        worker: its number.
        wanted: item and url.
        known: what earlier runs made of them, `IMAGE_SCHEMA`.
        threads: downloads at a time.
        per_host: from one host.
    """

    worker: int
    wanted: pl.DataFrame
    known: pl.DataFrame
    threads: int
    per_host: int


def download(settings: ImageSettings, paths: DatasetPaths, engine: Engine = LOCAL) -> Stats:
    """Bring the photo of every item that has a URL, and write the manifest.

    A photo that is there already, of the same URL and size and unchanged, is kept, unless it came
    from a local file that was replaced since; a URL that failed in an earlier run is tried again; a
    killed run goes on where it was.

    Raises:
        MissingArtefactError: the catalogue or the raw files have not been made.
        ArtefactError: the manifest of an earlier run is damaged.
    """
    start = time.monotonic()
    catalogue = pl.read_parquet(files.require(paths.items), columns=[ITEM, IMAGE_URL])
    wanted = catalogue.drop_nulls(IMAGE_URL).rename({IMAGE_URL: "url"}).sort(ITEM)
    shares = _shares(settings, wanted, _known(settings, paths), engine.workers)
    fetched = sum(engine.map_shards(Fetch(settings, paths), shares))
    noted = outcomes(paths.images_journals)
    manifest = wanted.join(noted, on=[ITEM, "url"], how="left").select(IMAGE_SCHEMA.names())
    _remove_orphans(paths, manifest)
    _write_manifest(paths, manifest, settings.size)
    for journal in paths.images_journals:
        files.remove(journal)
    return _stats(manifest, catalogue.height, fetched, time.monotonic() - start)


def _known(settings: ImageSettings, paths: DatasetPaths) -> pl.DataFrame:
    """What earlier runs made of URLs, killed ones too, however many workers they had. Schema: `IMAGE_SCHEMA`."""
    with Journal(paths.images_journal, settings) as journal:
        for path in paths.images_journals[1:]:
            journal.take_over(path, settings)
        replaced = _forget_replaced(paths, journal)
    known = newest([_photos_of_last_run(paths, settings.size), journal.earlier])
    return known.join(replaced, on=[ITEM, "url"], how="anti")


def _shares(settings: ImageSettings, wanted: pl.DataFrame, known: pl.DataFrame, workers: int) -> list[Share]:
    """Parts of the work for so many workers at most: what all of them ask for at a time is what settings allow."""
    count = min(workers, settings.threads, settings.per_host)

    def part(whole: int, worker: int) -> int:
        return whole // count + (worker < whole % count)

    def share(worker: int) -> Share:
        own = wanted.gather_every(count, worker)
        before = known.join(own, on=[ITEM, "url"], how="semi")
        return Share(worker, own, before, part(settings.threads, worker), part(settings.per_host, worker))

    return [share(worker) for worker in range(count)]


@dataclass(frozen=True)
class Fetch:
    """What a worker does with its share."""

    settings: ImageSettings
    paths: DatasetPaths

    def __call__(self, share: Share) -> int:
        """Settle every URL; returns for how many the network was needed.

        A worker that takes over from one that died finds what that one noted in the share's journal.
        """
        stop = threading.Event()
        with (
            Journal(self.paths.images_journal_of(share.worker), self.settings) as journal,
            _served(raw_files.locate(self.paths).photos) as own_host,
            Downloader(self.settings, self.paths, journal, own_host, stop) as downloader,
        ):
            tasks = _tasks(share.wanted, newest([share.known, journal.earlier]))
            settled = map_by_host(downloader.settle, tasks, share.threads, share.per_host, stop)
            return sum(progress.track(settled, "photos", share.wanted.height, log))


def _forget_replaced(paths: DatasetPaths, journal: Journal) -> pl.DataFrame:
    """Item and url of photos whose local file was replaced; the journal has it before the new signs are noted."""
    now = local_photos.signs(paths)
    replaced = local_photos.replaced(paths, now)
    for item, url in replaced.iter_rows():
        journal.append(Outcome(item, url, TRYING, 0, "replaced"))
    local_photos.note(paths, now)
    return replaced


@contextmanager
def _served(folder: Path | None) -> Iterator[str | None]:
    """Host and port that stand for `LOOPBACK_HOST`, where the dataset brings its photos along."""
    with serving(folder) if folder else nullcontext() as host:
        yield host


def _tasks(wanted: pl.DataFrame, known: pl.DataFrame) -> Iterator[Task]:
    rows = wanted.join(known, on=[ITEM, "url"], how="left", maintain_order="left")
    for row in rows.iter_rows(named=True):
        yield Task(row[ITEM], row["url"], Outcome(**row) if row["status"] else None)


def _photos_of_last_run(paths: DatasetPaths, size: int) -> pl.DataFrame:
    """Rows of the manifest that are worth keeping: photos of the same size. Failures are to be tried again."""
    path = paths.images_manifest
    if not path.exists():
        return IMAGE_SCHEMA.to_frame()
    rows = read_manifest(paths)
    same_size = pl.read_parquet_metadata(path).get(SIZE_KEY) == str(size)
    return rows.filter(pl.col("status") == OK, pl.lit(same_size))


def read_manifest(paths: DatasetPaths) -> pl.DataFrame:
    """What came of each URL, as the last whole run left it. Schema: `IMAGE_SCHEMA`.

    Raises:
        MissingArtefactError: no run has ended yet.
        ArtefactError: the file is damaged.
    """
    path = files.require(paths.images_manifest)
    try:
        return pl.read_parquet(path, schema=IMAGE_SCHEMA)
    except pl.exceptions.PolarsError as error:
        raise ArtefactError(f"{path} is no manifest of photos ({error}); remove it to fetch them again") from error


def counts(manifest: pl.DataFrame) -> pl.DataFrame:
    """How many photos of each status and reason, the most first."""
    counted = manifest.group_by("status", "reason").agg(pl.len().alias("photos"))
    return counted.sort(["photos", "status", "reason"], descending=[True, True, False])


def _write_manifest(paths: DatasetPaths, manifest: pl.DataFrame, size: int) -> None:
    with files.replacing(paths.images_manifest) as temporary:
        manifest.write_parquet(temporary, metadata={SIZE_KEY: str(size)})


def _remove_orphans(paths: DatasetPaths, manifest: pl.DataFrame) -> None:
    """Remove what no row stands for: photos of items that are gone or fail now, and a killed run's partial files.

    Names are compared as frames: as Python paths, a million of them would take half a gigabyte.
    """
    items = manifest.filter(pl.col("status") == OK)[ITEM]
    kept = items.map_elements(lambda item: str(paths.image(item)), pl.String)
    walk = os.walk(paths.images)
    there = pl.Series((f"{folder}/{name}" for folder, _, names in walk for name in names), dtype=pl.String)
    for path in there.filter(~there.is_in(kept)):
        files.remove(Path(path))


def _stats(manifest: pl.DataFrame, items: int, fetched: int, seconds: float) -> Stats:
    failed = manifest.filter(pl.col("status") == FAILED)
    ok = manifest.height - failed.height
    reasons: dict[str, int] = dict(counts(failed).drop("status").iter_rows())
    if reasons:
        told = ", ".join(f"{reason} ({count})" for reason, count in reasons.items())
        log.warning("%d of %d photos failed: %s", failed.height, manifest.height, told)
    return {
        "urls": manifest.height,
        "ok": ok,
        "failed": failed.height,
        "failed_by_reason": reasons,
        "reused": manifest.height - fetched,
        "items_with_photo_share": ok / items if items else 0.0,
        "bytes": int(manifest["bytes"].sum()),
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
