"""Photos of a local folder that are replaced under the same name are fetched anew, and only they."""

import os

import polars as pl
import pytest
from PIL import Image

from pixrec_core import files
from pixrec_core.data import images, local_photos
from pixrec_core.data.image_journal import Journal, Outcome
from pixrec_core.data.sources import LOOPBACK_HOST
from pixrec_core.paths import DatasetPaths
from pixrec_core.pipeline import IMAGES
from pixrec_core.schemas import ITEM_SCHEMA
from pixrec_core.settings import ImageSettings, Settings
from pixrec_core.stages import Work
from tests.core.data.hostile_server import jpeg

SETTINGS = ImageSettings()
RED, BLUE = jpeg(colour=(250, 0, 0)), jpeg(colour=(0, 0, 250))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name} +.jpg").write_bytes(RED)
    return folder


@pytest.fixture
def paths(tmp_path, folder):
    """A catalogue of three local photos, one that is not there, and an item without any."""
    urls = {name: f"http://{LOOPBACK_HOST}/{name}%20+.jpg" for name in "cabx"}
    urls["none"] = None
    paths = DatasetPaths(tmp_path / "data" / "shop")
    paths.root.mkdir(parents=True)
    rows = pl.DataFrame({"item": list(urls), "image_url": list(urls.values())})
    columns = (pl.col(c) if c in rows.columns else pl.lit(None, t).alias(c) for c, t in ITEM_SCHEMA.items())
    rows.select(columns).write_parquet(paths.items)
    entry = {"path": "unused"}
    files.write_json(paths.raw_manifest, {"reviews": entry, "metadata": entry, "photos": str(folder)})
    return paths


def colours(paths):
    """The stored photo of each item, by its strongest channel."""
    found = {}
    for item in "abc":
        with Image.open(paths.image(item)) as photo:
            pixel = photo.getpixel((5, 5))
        found[item] = "rgb"[pixel.index(max(pixel))]
    return found


def replace(path, body):
    """Write it anew, a second later."""
    before = path.stat()
    path.write_bytes(body)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000_000))


def test_signs_are_size_and_time_of_what_the_catalogue_names(paths, folder):
    (folder / "another.jpg").write_bytes(RED)
    stat = (folder / "a +.jpg").stat()
    signs = local_photos.signs(paths)
    assert signs.columns == ["item", "url", "bytes", "modified_ns"]
    assert signs["item"].to_list() == ["a", "b", "c", "x"]
    assert signs.row(0)[2:] == (len(RED), stat.st_mtime_ns)
    assert signs.row(3)[2:] == (-1, -1)


def test_only_what_was_replaced_is_fetched_anew(paths, folder):
    first = images.download(SETTINGS, paths)
    assert (first["ok"], first["failed"]) == (3, 1)
    replace(folder / "b +.jpg", BLUE)
    stats = images.download(SETTINGS, paths)
    assert stats["reused"] == 2  # the one that is not there is tried again, as ever
    assert colours(paths) == {"a": "r", "b": "b", "c": "r"}
    assert images.download(SETTINGS, paths)["reused"] == 3


def test_a_photo_touched_but_the_same_changes_nothing_later(paths, folder):
    images.download(SETTINGS, paths)
    before = images.digest(paths)
    replace(folder / "a +.jpg", RED)
    assert images.download(SETTINGS, paths)["reused"] == 2
    assert images.digest(paths) == before


def test_a_replacement_between_a_kill_and_the_next_run_is_seen(paths, folder):
    """Of a run before this one there are signs; of the killed one a journal that has settled everything."""
    images.download(SETTINGS, paths)
    kept = Outcome(**pl.read_parquet(paths.images_manifest).filter(item="a").row(0, named=True))
    with Journal(paths.images_journal, SETTINGS) as journal:
        journal.append(kept)
        journal.append(Outcome("b", kept.url.replace("a", "b", 1), "failed", 1, "not an image"))
    for name in "ab":
        replace(folder / f"{name} +.jpg", BLUE)
    images.download(SETTINGS, paths)
    assert colours(paths) == {"a": "b", "b": "b", "c": "r"}


def test_a_kill_after_the_signs_are_noted_loses_no_replacement(paths, folder, monkeypatch):
    images.download(SETTINGS, paths)
    replace(folder / "b +.jpg", BLUE)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(images, "map_by_host", killed)
        with pytest.raises(KeyboardInterrupt):
            images.download(SETTINGS, paths)
    images.download(SETTINGS, paths)
    assert colours(paths)["b"] == "b"


def test_the_stage_is_stale_once_a_photo_is_another(paths, folder, tmp_path):
    own = {"source": {"kind": "sample"}}
    work = Work(Settings(root=tmp_path, data_dir=paths.root.parent, datasets={"shop": own}), "shop")
    for stage in ("raw", "items"):
        files.write_json(paths.stamp(stage), {"data_version": "1"})
    IMAGES.materialise(work)
    assert IMAGES.is_current(work)
    (folder / "another.jpg").write_bytes(RED)
    assert IMAGES.is_current(work)
    replace(folder / "c +.jpg", RED)
    assert not IMAGES.is_current(work)
    IMAGES.materialise(work)
    (folder / "c +.jpg").unlink()
    assert not IMAGES.is_current(work)


def test_photos_of_the_web_have_no_signs(paths):
    entry = {"path": "unused"}
    files.write_json(paths.raw_manifest, {"reviews": entry, "metadata": entry, "photos": None})
    assert local_photos.digest(paths) is None
    assert local_photos.signs(paths).is_empty()
