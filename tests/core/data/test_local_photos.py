"""Local photos: no file outside the photo folder is read, and a file replaced under the same name is read again."""

import os

import polars as pl
import pytest
from PIL import Image

from pixrec_core import files
from pixrec_core.data import images, local_photos
from pixrec_core.data.image_manifest import Journal, Outcome
from pixrec_core.data.photos import PhotoError
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
    """A catalogue of three local photos, a missing one, and an item without a photo."""
    urls = {name: f"{name} +.jpg" for name in "cabx"}
    urls["none"] = None
    paths = DatasetPaths(tmp_path / "data" / "shop")
    paths.root.mkdir(parents=True)
    rows = pl.DataFrame({"item": list(urls), "image_url": list(urls.values())})
    columns = (pl.col(c) if c in rows.columns else pl.lit(None, t).alias(c) for c, t in ITEM_SCHEMA.items())
    rows.select(columns).write_parquet(paths.items)
    entry = {"path": "unused"}
    files.write_json(paths.raw_manifest, {"reviews": entry, "metadata": entry, "photos": str(folder)})
    return paths


class TestReading:
    @pytest.fixture(autouse=True)
    def more_files(self, tmp_path, folder):
        (tmp_path / "secret.jpg").write_bytes(b"secret")
        (tmp_path / "photos2").mkdir()
        (tmp_path / "photos2" / "secret.jpg").write_bytes(b"secret")
        (folder / "sub").mkdir()
        (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
        (folder / "parent").symlink_to(tmp_path)
        (folder / "alias.jpg").symlink_to(folder / "a +.jpg")
        (folder / "loop").symlink_to(folder / "loop")
        os.mkfifo(folder / "pipe")

    @pytest.mark.parametrize("path", ["a +.jpg", "./a +.jpg", "sub/", "alias.jpg"])
    def test_a_file_in_the_folder(self, folder, path):
        if path == "sub/":
            (folder / "sub" / "d.jpg").write_bytes(RED)
            path = "sub/d.jpg"
        assert local_photos.read_photo(folder, path, 10_000) == RED

    @pytest.mark.parametrize(
        "path",
        [
            *("../secret.jpg", "..", "sub/../../secret.jpg", "sub/../a +.jpg", "../photos2/secret.jpg"),
            *("/etc/passwd", "//secret.jpg", "link.jpg", "parent/secret.jpg", "parent/photos2/secret.jpg"),
        ],
    )
    def test_files_outside_the_folder_are_rejected(self, folder, path):
        with pytest.raises(PhotoError, match="outside the photo folder"):
            local_photos.read_photo(folder, path, 10_000)

    def test_an_absolute_path_into_the_folder_is_rejected(self, folder):
        with pytest.raises(PhotoError, match="outside the photo folder"):
            local_photos.read_photo(folder, str(folder / "a +.jpg"), 10_000)

    @pytest.mark.parametrize("path", ["", ".", "sub", "none.jpg", "a +.jpg/b", "pipe", "a\0b", "loop", "a" * 5000])
    def test_paths_that_are_not_files_have_a_reason(self, folder, path):
        with pytest.raises(PhotoError, match=r"no such file|unreadable file"):
            local_photos.read_photo(folder, path, 10_000)

    def test_a_file_over_the_limit(self, folder):
        with pytest.raises(PhotoError, match="too many bytes"):
            local_photos.read_photo(folder, "a +.jpg", len(RED) - 1)


@pytest.mark.parametrize(
    ("image_url", "path"),
    [
        ("images/a b.jpg", "images/a b.jpg"),
        ("http://127.0.0.1:PORT/images/a%20b.jpg?v=2", "images/a b.jpg"),
        ("http://127.0.0.1:PORT/%2e%2e/secret", "../secret"),
        ("http://127.0.0.1:8000/a.jpg", None),
        ("HTTPS://h/a.jpg", None),
        ("file:///etc/passwd", None),
    ],
)
def test_which_entries_are_paths(image_url, path):
    assert local_photos.local_path(image_url) == path
    found = pl.select(local_photos.is_local(pl.lit(image_url))).item()
    assert found == (path is not None)


def colours(paths, items="abc"):
    """The stored photo of each item, by its strongest channel."""
    found = {}
    for item in items:
        with Image.open(paths.image(item)) as photo:
            pixel = photo.getpixel((5, 5))
        found[item] = "rgb"[pixel.index(max(pixel))]
    return found


def replace(path, body):
    """Replace the bytes, with a modification time one second later."""
    before = path.stat()
    path.write_bytes(body)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000_000))


def test_the_snapshot_has_size_and_time_of_the_files_that_the_catalogue_names(paths, folder):
    (folder / "another.jpg").write_bytes(RED)
    stat = (folder / "a +.jpg").stat()
    found = local_photos.stat_snapshot(paths)
    assert found.columns == ["item", "url", "file", "bytes", "modified_ns"]
    assert found["item"].to_list() == ["a", "b", "c", "x"]
    assert found.row(0)[2:] == ("a +.jpg", len(RED), stat.st_mtime_ns)
    assert found.row(3)[2:] == ("x +.jpg", -1, -1)


def test_only_replaced_files_are_read_again(paths, folder):
    first = images.download_images(SETTINGS, paths)
    assert (first["ok"], first["failed"]) == (3, 1)
    replace(folder / "b +.jpg", BLUE)
    stats = images.download_images(SETTINGS, paths)
    assert stats["reused"] == 2  # the missing file is tried again
    assert colours(paths) == {"a": "r", "b": "b", "c": "r"}
    assert images.download_images(SETTINGS, paths)["reused"] == 3


def test_a_new_time_with_the_same_bytes_leaves_the_digest(paths, folder):
    images.download_images(SETTINGS, paths)
    before = images.manifest_digest(paths)
    replace(folder / "a +.jpg", RED)
    assert images.download_images(SETTINGS, paths)["reused"] == 2
    assert images.manifest_digest(paths) == before


def test_a_replacement_between_a_killed_run_and_the_next_is_seen(paths, folder):
    """A finished run wrote a snapshot, and a killed one a journal with the outcome of every photo."""
    images.download_images(SETTINGS, paths)
    kept = Outcome(**pl.read_parquet(paths.images_manifest).filter(item="a").row(0, named=True))
    with Journal(paths.images_journal, SETTINGS) as journal:
        journal.append(kept)
        journal.append(Outcome("b", "b +.jpg", "failed", 1, "not an image"))
    for name in "ab":
        replace(folder / f"{name} +.jpg", BLUE)
    images.download_images(SETTINGS, paths)
    assert colours(paths) == {"a": "b", "b": "b", "c": "r"}


@pytest.mark.parametrize("changed", [{}, {"threads": 3}, {"size": 100}])
def test_a_kill_after_the_snapshot_is_written_loses_no_replacement(paths, folder, monkeypatch, changed):
    images.download_images(SETTINGS, paths)
    replace(folder / "b +.jpg", BLUE)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(images, "map_by_host", killed)
        with pytest.raises(KeyboardInterrupt):
            images.download_images(SETTINGS, paths)
    images.download_images(SETTINGS.model_copy(update=changed), paths)
    assert colours(paths)["b"] == "b"


def name_others(paths, item, others):
    """Set the further photos of an item, and let the other items have none."""
    column = pl.when(item=item).then(pl.lit(others, pl.List(pl.String))).alias("other_image_urls")
    pl.read_parquet(paths.items).with_columns(column).write_parquet(paths.items)


@pytest.mark.parametrize(
    ("others", "colour"),
    [
        (["blue.jpg"], "b"),  # the red one is gone from the catalogue
        (["blue.jpg", "a +.jpg"], "b"),  # the red one comes after another
        (["a +.jpg", "blue.jpg"], "r"),
    ],
)
def test_a_photo_is_that_of_the_first_url_that_works_now(paths, folder, others, colour):
    """Item x has a first photo that is missing, and before the change a red one as its second."""
    (folder / "blue.jpg").write_bytes(BLUE)
    name_others(paths, "x", ["a +.jpg"])
    images.download_images(SETTINGS, paths)
    assert colours(paths, "x") == {"x": "r"}
    name_others(paths, "x", others)
    stats = images.download_images(SETTINGS, paths)
    assert (stats["ok"], stats["reused"]) == (4, 4 if colour == "r" else 3)
    assert colours(paths, "abcx") == {"a": "r", "b": "r", "c": "r", "x": colour}


def test_a_photo_that_is_named_no_longer_is_removed(paths):
    name_others(paths, "x", ["a +.jpg"])
    images.download_images(SETTINGS, paths)
    name_others(paths, "x", None)
    assert images.download_images(SETTINGS, paths)["failed_by_reason"] == {"no such file": 1}
    assert not paths.image("x").exists()


def test_a_replaced_second_photo_is_read_again(paths, folder):
    name_others(paths, "x", ["a +.jpg", "b +.jpg"])
    images.download_images(SETTINGS, paths)
    before = local_photos.snapshot_digest(paths)
    assert colours(paths, "x") == {"x": "r"}
    replace(folder / "a +.jpg", BLUE)
    assert local_photos.snapshot_digest(paths) != before
    images.download_images(SETTINGS, paths)
    assert colours(paths, "abcx") == {"a": "b", "b": "r", "c": "r", "x": "b"}


def test_a_replaced_photo_makes_the_stage_stale(paths, folder, tmp_path):
    own = {"source": {"kind": "sample"}}
    work = Work(Settings(root=tmp_path, data_dir=paths.root.parent, datasets={"shop": own}), "shop")
    for stage in ("raw", "items"):
        files.write_json(paths.stamp(stage), {"data_version": "1", "fingerprint": "1", "stats": {}})
    IMAGES.materialise(work)
    assert IMAGES.is_current(work)
    (folder / "another.jpg").write_bytes(RED)
    assert IMAGES.is_current(work)
    replace(folder / "c +.jpg", RED)
    assert not IMAGES.is_current(work)
    IMAGES.materialise(work)
    (folder / "c +.jpg").unlink()
    assert not IMAGES.is_current(work)


def test_photos_on_the_web_have_no_snapshot(paths):
    entry = {"path": "unused"}
    files.write_json(paths.raw_manifest, {"reviews": entry, "metadata": entry, "photos": None})
    assert local_photos.snapshot_digest(paths) is None
    assert local_photos.stat_snapshot(paths).is_empty()


def test_the_photo_folder_and_its_folder_images_may_be_links(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a.jpg").write_bytes(RED)
    (elsewhere / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (tmp_path / "secret.jpg").write_bytes(RED)
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "images").symlink_to(elsewhere)
    (tmp_path / "linked").symlink_to(tmp_path / "shop")
    for root in (tmp_path / "shop", tmp_path / "linked"):
        assert local_photos.read_photo(root, "images/a.jpg", 10**6) == RED
        with pytest.raises(PhotoError, match="outside the photo folder"):
            local_photos.read_photo(root, "images/out.jpg", 10**6)
    assert local_photos.read_photo(tmp_path / "shop" / "images", "a.jpg", 10**6) == RED
