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
from pathlib import Path
from typing import Final

import polars as pl
from PIL import Image

from pixrec_core import files, progress
from pixrec_core.data import local_photos, raw_files
from pixrec_core.data.by_host import map_by_host
from pixrec_core.data.downloading import Downloader, Task
from pixrec_core.data.image_journal import FAILED, OK, TRYING, Journal, Outcome
from pixrec_core.data.photo_server import serving
from pixrec_core.errors import ArtefactError
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import IMAGE_SCHEMA, IMAGE_URL, ITEM
from pixrec_core.settings import ImageSettings
from pixrec_core.stages import Stats

SIZE_KEY: Final = "pixrec.size"  # in the manifest's file metadata: the setting that its photos were made with

log = logging.getLogger(__name__)


def download(settings: ImageSettings, paths: DatasetPaths) -> Stats:
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
    with Journal(paths.images_journal, settings) as journal:
        fetched = _fetch_all(settings, paths, wanted, journal)
        manifest = wanted.join(journal.outcomes(), on=[ITEM, "url"], how="left").select(IMAGE_SCHEMA.names())
        _remove_orphans(paths, manifest)
        _write_manifest(paths, manifest, settings.size)
        journal.remove()
    return _stats(manifest, catalogue.height, fetched, time.monotonic() - start)


def _fetch_all(settings: ImageSettings, paths: DatasetPaths, wanted: pl.DataFrame, journal: Journal) -> int:
    """Settle every URL; returns for how many the network was needed."""
    known = pl.concat([_photos_of_last_run(paths, settings.size), journal.earlier])
    known = known.unique([ITEM, "url"], keep="last", maintain_order=True)
    known = known.join(_forget_replaced(paths, journal), on=[ITEM, "url"], how="anti")
    stop = threading.Event()
    with (
        _served(raw_files.locate(paths).photos) as own_host,
        Downloader(settings, paths, journal, own_host, stop) as downloader,
    ):
        settled = map_by_host(downloader.settle, _tasks(wanted, known), settings.threads, settings.per_host, stop)
        return sum(progress.track(settled, "photos", wanted.height, log))


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
