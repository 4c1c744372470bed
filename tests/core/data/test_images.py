import dataclasses
import gzip
import hashlib
import json
import logging
import os
import random
import signal
import threading
import time
from pathlib import Path

import polars as pl
import psutil
import pytest
from PIL import Image

from pixrec_core import files
from pixrec_core.data import image_manifest, images, retrying
from pixrec_core.data.image_manifest import Journal, Outcome
from pixrec_core.errors import ArtefactError, MissingArtefactError, SourceError
from pixrec_core.paths import DatasetPaths
from pixrec_core.pipeline import IMAGES
from pixrec_core.schemas import IMAGE_SCHEMA, ITEM_SCHEMA
from pixrec_core.settings import ImageSettings, Settings
from pixrec_core.stages import Work
from tests.core.data.hostile_server import encoded, hostile_server, in_turn, jpeg, raw, sends, waits
from tests.forks import CONTEXT


@pytest.fixture
def server():
    with hostile_server() as running:
        yield running


@pytest.fixture
def paths(tmp_path):
    return DatasetPaths(tmp_path / "toy")


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(retrying, "FIRST_WAIT_S", 0.01)


def settings(**values):
    return ImageSettings(**{"allow_private_hosts": True, "timeout_s": 2, "deadline_s": 5, "threads": 4, **values})


def write_items(paths, urls, photos=None):
    """Write a catalogue of items and URLs, and a manifest of raw files that need not exist."""
    rows = pl.DataFrame(
        {"item": list(urls), "image_url": list(urls.values())}, schema={"item": pl.String, "image_url": pl.String}
    )
    rows = rows.select(*(pl.col(c) if c in rows.columns else pl.lit(None, t).alias(c) for c, t in ITEM_SCHEMA.items()))
    paths.root.mkdir(parents=True, exist_ok=True)
    rows.write_parquet(paths.items)
    entry = {"path": "unused", "bytes": 1, "sha256": ""}
    manifest = {"reviews": entry, "metadata": entry, "photos": str(photos) if photos else None}
    files.write_json(paths.raw_manifest, manifest)


def manifest(paths):
    return {row["item"]: row for row in pl.read_parquet(paths.images_manifest).iter_rows(named=True)}


def snapshot(paths):
    """Return every file that a download writes, by name."""
    left = [p for p in (paths.images_manifest, *paths.images_journals, *paths.images.rglob("*")) if p.is_file()]
    return {str(p.relative_to(paths.root)): p.read_bytes() for p in left}


def test_photos_and_manifest(server, paths):
    photo = jpeg(600, 300)
    write_items(paths, {"b": server.url("/b", sends(photo)), "a": server.url("/a"), "none": None})
    stats = images.download_images(settings(size=200), paths)
    table = pl.read_parquet(paths.images_manifest)
    stored = paths.image("b").read_bytes()
    sha256 = hashlib.sha256(stored).hexdigest()
    assert table.schema == IMAGE_SCHEMA
    assert table.rows() == [
        ("a", server.url("/a"), "failed", "http 404", None, None, None, None, 1, [server.url("/a")]),
        ("b", server.url("/b"), "ok", None, sha256, 200, 100, len(stored), 1, [server.url("/b")]),
    ]
    with Image.open(paths.image("b")) as opened:
        assert (opened.format, opened.mode, opened.size) == ("JPEG", "RGB", (200, 100))
    seconds, rate = stats.pop("seconds"), stats.pop("photos_per_second")
    assert rate == pytest.approx(2 / seconds, rel=0.1)
    assert stats == {
        "urls": 2,
        "ok": 1,
        "failed": 1,
        "failed_by_reason": {"http 404": 1},
        "reused": 0,
        "items_with_photo_share": 1 / 3,
        "bytes": len(stored),
    }
    assert not paths.images_journal.exists()


def test_the_first_photo_of_an_item_that_works_is_stored(server, paths):
    write_items(paths, {"a": server.url("/a"), "b": server.url("/b")})
    others = {"a": [server.url("/gone"), server.url("/works", sends(jpeg(40, 20))), server.url("/later")], "b": []}
    rows = pl.read_parquet(paths.items).with_columns(other_image_urls=pl.Series([others["a"], others["b"]]))
    rows.write_parquet(paths.items)
    stats = images.download_images(settings(), paths)
    assert (stats["ok"], stats["failed_by_reason"]) == (1, {"http 404": 1})
    row = manifest(paths)["a"]
    assert (row["url"], row["status"], row["width"]) == (server.url("/a"), "ok", 40)
    assert images.download_images(settings(), paths)["reused"] == 1


def test_columns_of_an_outcome_are_those_of_the_manifest():
    assert {field.name for field in dataclasses.fields(Outcome)} == set(IMAGE_SCHEMA)


@pytest.mark.parametrize("urls", [{}, {"a": None, "b": None}])
def test_a_catalogue_without_urls(paths, urls):
    write_items(paths, urls)
    stats = images.download_images(settings(), paths)
    assert (stats["urls"], stats["ok"], stats["items_with_photo_share"]) == (0, 0, 0.0)
    assert pl.read_parquet(paths.images_manifest).schema == IMAGE_SCHEMA


def test_a_missing_catalogue_is_an_error(paths):
    with pytest.raises(MissingArtefactError, match=r"items\.parquet"):
        images.download_images(settings(), paths)


def test_one_url_for_many_items_and_ids_of_any_kind(server, paths):
    url = server.url("/a", sends(jpeg()))
    items = ["../../etc/passwd", "a/b", "é", "", " ", "x" * 500]
    write_items(paths, dict.fromkeys(items, url))
    assert images.download_images(settings(), paths)["ok"] == len(items)
    assert all(images.open_photo(paths, item).size == (40, 30) for item in items)
    assert all(p.is_relative_to(paths.images) for p in paths.root.rglob("*.jpg"))


class TestHostileAnswers:
    @pytest.mark.parametrize(
        ("answer", "reason"),
        [
            (sends(b"<html>Sorry, something went wrong</html>", Content_Type="image/jpeg"), "not an image"),
            (sends(b""), "not an image"),
            (sends(jpeg(300, 300, quality=99)[:-700]), "damaged image"),
            (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n" + jpeg(300, 300)), "damaged image"),
            (sends(jpeg(101, 100)), "too many pixels"),
            (sends(b"x" * 60_001), "too many bytes"),
            (sends(b"", 302, Location="file:///etc/passwd"), "bad url"),
            (sends(b"no", 403), "http 403"),
        ],
    )
    def test_invalid_answers_fail_at_once_with_a_reason(self, server, paths, answer, reason):
        write_items(paths, {"a": server.url("/a", answer)})
        pixels = 10_000 if reason == "too many pixels" else 1_000_000
        stats = images.download_images(settings(max_pixels=pixels, max_bytes=60_000), paths)
        assert stats["failed_by_reason"] == {reason: 1}
        assert manifest(paths)["a"]["attempts"] == 1
        assert not paths.image("a").exists()

    @pytest.mark.parametrize(
        "trouble", [sends(b"", 503), sends(b"", 429, Retry_After="0"), raw(b""), raw(b"HTTP/1.1 2")]
    )
    def test_transient_errors_are_retried(self, server, paths, trouble):
        write_items(paths, {"a": server.url("/a", in_turn(trouble, trouble, sends(jpeg())))})
        assert images.download_images(settings(), paths)["ok"] == 1
        assert manifest(paths)["a"]["attempts"] == 3

    def test_retries_are_limited(self, server, paths):
        write_items(paths, {"a": server.url("/a", sends(b"", 500))})
        assert images.download_images(settings(attempts=3), paths)["failed_by_reason"] == {"http 500": 1}
        assert server.hits["/a"] == manifest(paths)["a"]["attempts"] == 3

    def test_waits_double_with_jitter_up_to_a_minute(self, monkeypatch):
        monkeypatch.setattr(retrying, "FIRST_WAIT_S", 0.5)
        for attempts, longest in ((1, 0.5), (2, 1), (3, 2), (7, 32), (8, 60), (50, 60)):
            waits = [retrying.wait_s(attempts, None) for _ in range(50)]
            assert longest / 2 <= min(waits) < max(waits) <= longest
        assert retrying.wait_s(1, 0.0) == 0

    def test_retry_after_is_honoured(self, server, paths):
        write_items(paths, {"a": server.url("/a", in_turn(sends(b"", 429, Retry_After="1"), sends(jpeg())))})
        start = time.monotonic()
        assert images.download_images(settings(), paths)["ok"] == 1
        assert time.monotonic() - start >= 1

    def test_private_addresses_and_bad_urls(self, server, paths):
        urls = {
            "own": server.url("/a", sends(jpeg())),
            "ftp": "ftp://h/a",
            "text": "no photo",
            "empty": "",
            "v6": "http://[",
        }
        write_items(paths, urls)
        stats = images.download_images(settings(allow_private_hosts=False), paths)
        assert stats["failed_by_reason"] == {"bad url": 2, "no photo folder": 2, "address not public": 1}
        assert not server.hits

    def test_no_credentials_in_the_log(self, server, paths, caplog):
        caplog.set_level(logging.INFO)
        url = server.url("/a?key=sesame", sends(b"", 500)).replace("//", "//user:sesame@")
        write_items(paths, {"a": url})
        images.download_images(settings(attempts=2), paths)
        assert "http 500 (1)" in caplog.text
        assert "sesame" not in caplog.text


@pytest.mark.parametrize(
    ("values", "code", "remedy"),
    [
        ({"allow_private_hosts": False}, 200, "set `allow_private_hosts = true` in [images]"),
        ({"allow_hosts": ("h.test",)}, 200, "`allow_hosts` in [images]"),
        ({"deny_hosts": ("127.*",)}, 200, "remove it from `deny_hosts`"),
        ({}, 403, "[images.headers]"),
    ],
)
def test_without_any_photo_a_warning_names_the_setting_that_helps(server, paths, caplog, values, code, remedy):
    write_items(paths, {n: server.url(f"/{n}", sends(jpeg(), code)) for n in "ab"})
    images.download_images(settings(**values), paths)
    assert "warning: no photo could be stored. " in caplog.text
    assert remedy in caplog.text


def test_with_one_photo_no_remedy_is_shown(server, paths, caplog):
    write_items(paths, {"a": server.url("/a", sends(jpeg())), "b": server.url("/b", sends(b"", 403))})
    images.download_images(settings(), paths)
    assert "no photo could be stored" not in caplog.text


def test_a_full_disk_ends_the_run_without_waiting(server, paths, monkeypatch):
    replacing = files.replacing

    def full(path):
        if path.suffix == ".jpg":
            raise OSError(28, "No space left on device")
        return replacing(path)

    server.delay_s = 0.1
    waits = server.url("/a", sends(b"", 503, Retry_After="60"))
    write_items(paths, {"a": waits, "b": server.url("/b", in_turn(sends(b"", 503), sends(jpeg())))})
    monkeypatch.setattr(files, "replacing", full)
    start = time.monotonic()
    with pytest.raises(OSError, match="No space left"):
        images.download_images(settings(), paths)
    assert time.monotonic() - start < 60
    assert not paths.images_manifest.exists()
    assert paths.images_journal.exists()


@pytest.mark.timeout(40)
def test_an_interrupt_ends_the_stage_whatever_is_fetched_and_decoded(server, paths):
    """Without waiting for a photo that decodes for minutes, nor for a server that is silent for a minute."""
    whole = jpeg(7000, 7000, progressive=True, quality=30)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    slow = whole[:-2] + last * (1_000_000 // len(last)) + whole[-2:]
    urls = {str(n): server.url(f"/{n}", sends(slow)) for n in range(3)}
    write_items(paths, urls | {"silent": server.url("/silent", waits())})
    decoders, others = [], set(psutil.Process().children())

    def interrupt():
        while server.hits.total() < 4 or not decoders:
            decoders[:] = set(psutil.Process().children()) - others
            server.ends.wait(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        images.download_images(settings(timeout_s=60, deadline_s=60), paths)
    thread.join()
    assert paths.images_journal.exists()
    assert not paths.images_manifest.exists()
    assert not any(child.is_running() for child in decoders)


def test_one_host_gets_few_requests_at_a_time(server, paths):
    server.delay_s = 0.02
    write_items(paths, {str(n): server.url(f"/{n}", sends(jpeg())) for n in range(30)})
    images.download_images(settings(threads=8, per_host=3), paths)
    assert server.most == 3


def test_values_of_headers_are_in_no_file_and_no_log(server, paths, caplog):
    caplog.set_level(logging.DEBUG)
    secret = settings(headers={"*": {"Authorization": "sesame"}}, attempts=2)
    write_items(paths, {"a": server.url("/a", sends(b"", 503)), "b": server.url("/b", sends(jpeg()))})
    with Journal(paths.images_journal, secret) as journal:
        journal.append(Outcome("a", server.url("/a"), "trying", 1, "http 503"))
    assert "sesame" not in paths.images_journal.read_text()
    images.download_images(secret, paths)
    assert not [name for name, content in snapshot(paths).items() if b"sesame" in content]
    assert "sesame" not in caplog.text + repr(secret) + str(secret.model_dump()) + secret.model_dump_json()


def test_a_corrected_header_makes_the_stage_stale(paths):
    """Sections without headers have the same fingerprint as before headers had digests."""
    write_items(paths, {"a": None})
    for stage in ("raw", "items"):
        files.write_json(paths.stamp(stage), {"data_version": "1", "fingerprint": "1", "stats": {}})

    def work(**section):
        shop = {"source": {"kind": "sample"}, "images": section}
        return Work(Settings(root=paths.root, data_dir=paths.root.parent, datasets={"toy": shop}), "toy")

    IMAGES.materialise(work(headers={"*": {"X-Key": "wrong"}}))
    assert IMAGES.is_current(work(headers={"*": {"X-Key": "wrong"}}))
    assert not IMAGES.is_current(work(headers={"*": {"X-Key": "right"}}))
    assert b"wrong" not in paths.stamp("images").read_bytes()
    assert work().dataset_settings.images.model_dump(mode="json")["headers"] == {}


class TestAgain:
    def test_stored_photos_are_not_downloaded_again(self, server, paths):
        write_items(paths, {str(n): server.url(f"/{n}", sends(jpeg())) for n in range(5)})
        images.download_images(settings(), paths)
        before = snapshot(paths)
        stats = images.download_images(settings(threads=2), paths)
        assert (stats["ok"], stats["reused"]) == (5, 5)
        assert server.hits.total() == 5
        assert snapshot(paths) == before

    def test_failed_photos_are_tried_again(self, server, paths):
        write_items(paths, {"a": server.url("/a"), "b": server.url("/b", sends(jpeg()))})
        images.download_images(settings(), paths)
        server.url("/a", sends(jpeg()))
        stats = images.download_images(settings(), paths)
        assert (stats["ok"], stats["reused"], dict(server.hits)) == (2, 1, {"/a": 2, "/b": 1})

    def test_photos_that_exceed_the_decoder_are_not_tried_again(self, server, paths):
        """Unless the memory for decoding or the URL changes."""
        large = encoded(Image.new("RGB", (7000, 9000), "red"), "PNG", compress_level=1)
        write_items(paths, {"a": server.url("/a", sends(large)), "b": server.url("/b", sends(jpeg()))})
        few = settings(decode_memory_mb=256, max_pixels=70_000_000)
        stats = [images.download_images(few, paths) for _ in range(2)]
        assert [found["failed_by_reason"] for found in stats] == [{"needs too much memory to decode": 1}] * 2
        assert [found["reused"] for found in stats] == [0, 2]
        server.url("/a", sends(jpeg()))
        assert images.download_images(few, paths)["failed"] == 1
        assert server.hits["/a"] == 1
        assert images.download_images(few.model_copy(update={"decode_memory_mb": 512}), paths)["failed"] == 0

    @pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: p.write_bytes(b"x")], ids=["lost", "changed"])
    def test_a_damaged_photo_is_downloaded_again(self, server, paths, damage):
        write_items(paths, {n: server.url(f"/{n}", sends(jpeg())) for n in "abc"})
        images.download_images(settings(), paths)
        before = snapshot(paths)
        damage(paths.image("b"))
        images.download_images(settings(), paths)
        assert dict(server.hits) == {"/a": 1, "/b": 2, "/c": 1}
        assert snapshot(paths) == before

    def test_another_url_and_another_size(self, server, paths):
        write_items(paths, {n: server.url(f"/{n}", sends(jpeg(90, 90))) for n in "ab"})
        images.download_images(settings(), paths)
        write_items(paths, {"a": server.url("/a"), "b": server.url("/b2", sends(jpeg(50, 50)))})
        images.download_images(settings(), paths)
        assert (manifest(paths)["a"]["width"], manifest(paths)["b"]["width"]) == (90, 50)
        assert dict(server.hits) == {"/a": 1, "/b": 1, "/b2": 1}
        images.download_images(settings(size=30), paths)
        assert {row["width"] for row in manifest(paths).values()} == {30}

    def test_counts_by_status_and_reason(self, server, paths):
        with pytest.raises(MissingArtefactError):
            image_manifest.read_manifest(paths)
        urls = {n: server.url(f"/{n}", sends(jpeg())) for n in "ab"} | {n: server.url(f"/{n}") for n in "cd"}
        write_items(paths, urls | {"e": "ftp://e"})
        images.download_images(settings(), paths)
        assert image_manifest.count_outcomes(image_manifest.read_manifest(paths).lazy()).rows() == [
            ("ok", None, 2),
            ("failed", "http 404", 2),
            ("failed", "bad url", 1),
        ]

    def test_photos_of_removed_or_failed_items_are_deleted(self, server, paths):
        write_items(paths, {n: server.url(f"/{n}", sends(jpeg())) for n in "abc"})
        images.download_images(settings(), paths)
        (paths.image("a").parent / ".x.jpg.partial").write_bytes(b"left by a killed run")
        write_items(paths, {"a": server.url("/a"), "b": server.url("/gone"), "d": None})
        images.download_images(settings(), paths)
        assert [p for p in paths.images.rglob("*") if p.is_file()] == [paths.image("a")]

    def test_a_manifest_of_an_older_version(self, server, paths):
        """It does not say which URL gave a photo, which is kept all the same."""
        write_items(paths, {n: server.url(f"/{n}", sends(jpeg())) for n in "ab"})
        others = {"other_image_urls": pl.Series([None, ["/c"]], dtype=pl.List(pl.String))}
        pl.read_parquet(paths.items).with_columns(**others).write_parquet(paths.items)
        images.download_images(settings(), paths)
        metadata = {k: v for k, v in pl.read_parquet_metadata(paths.images_manifest).items() if k.startswith("pixrec.")}
        table = pl.read_parquet(paths.images_manifest)
        table.drop("tried_urls").write_parquet(paths.images_manifest, metadata=metadata)
        old = image_manifest.read_manifest(paths)
        assert old.schema == IMAGE_SCHEMA
        assert old["tried_urls"].to_list() == [None, None]
        assert images.download_images(settings(), paths)["reused"] == 2
        assert dict(server.hits) == {"/a": 1, "/b": 1}

    def test_the_error_for_a_damaged_manifest_says_what_to_do(self, server, paths):
        write_items(paths, {"a": server.url("/a", sends(jpeg()))})
        paths.images_manifest.write_bytes(b"no parquet")
        with pytest.raises(ArtefactError, match=r"images\.parquet .* remove it"):
            images.download_images(settings(), paths)


class TestJournal:
    def line(self, item, url, status="ok", attempts=1, **more):
        return Outcome(item, url, status, attempts, **more)

    def leave(self, paths, outcomes, tail=b"", **values):
        """Write the files of a killed run."""
        with Journal(paths.images_journal, settings(**values)) as journal:
            for outcome in outcomes:
                journal.append(outcome)
        with paths.images_journal.open("ab") as file:
            file.write(tail)

    def failed(self, server):
        return self.line("a", server.url("/a"), "failed", attempts=2, reason="http 404")

    @pytest.mark.parametrize("tail", [b"", b'{"item": "b", "url', b"\xff\xfe"])
    def test_a_resumed_run_uses_complete_lines(self, server, paths, tail):
        write_items(paths, {n: server.url(f"/{n}", sends(jpeg())) for n in "ab"})
        self.leave(paths, [self.failed(server)], tail)
        images.download_images(settings(), paths)
        assert dict(server.hits) == {"/b": 1}
        assert manifest(paths)["a"]["attempts"] == 2

    @pytest.mark.parametrize(
        "content", [b"", b"garbage", b"garbage\n", b"[]\n", b"{}\n", b'{"size": 256}\n{"item": 7}\nnonsense\n']
    )
    def test_an_invalid_journal_is_started_over(self, server, paths, content):
        write_items(paths, {"a": server.url("/a", sends(jpeg()))})
        paths.images_journal.write_bytes(content)
        assert images.download_images(settings(), paths)["ok"] == 1
        assert not paths.images_journal.exists()

    def test_lines_before_a_damaged_line_are_used(self, server, paths):
        write_items(paths, {n: server.url(f"/{n}", sends(jpeg())) for n in "abc"})
        later = json.dumps(dataclasses.asdict(self.line("c", server.url("/c"), "failed", reason="http 404")))
        self.leave(paths, [self.failed(server)], tail=b'{"item": "b"}\n' + later.encode() + b"\n")
        images.download_images(settings(), paths)
        assert dict(server.hits) == {"/b": 1, "/c": 1}

    def test_the_last_line_of_a_photo_counts_and_its_own_url_alone(self, server, paths):
        write_items(paths, {n: server.url(f"/{n}", sends(jpeg())) for n in "ab"})
        trying = self.line("a", server.url("/a"), "trying", attempts=1, reason="http 503")
        elsewhere = self.line("b", server.url("/old"), "failed", reason="http 404")
        self.leave(paths, [trying, self.failed(server), elsewhere])
        images.download_images(settings(), paths)
        assert dict(server.hits) == {"/b": 1}
        assert [(row["status"], row["attempts"]) for row in manifest(paths).values()] == [("failed", 2), ("ok", 1)]

    def test_failures_under_other_settings_are_tried_again(self, server, paths):
        write_items(paths, {"a": server.url("/a", sends(jpeg()))})
        self.leave(paths, [self.failed(server)], max_bytes=10)
        assert images.download_images(settings(), paths)["ok"] == 1

    @pytest.mark.parametrize(
        ("status", "tried", "others", "holds"),
        [
            ("ok", ["u"], [], True),
            ("ok", ["u"], ["v"], True),
            ("ok", ["u", "v"], ["v", "w"], True),
            ("ok", ["u", "v"], [], False),
            ("ok", ["u", "v"], ["w", "v"], False),
            ("ok", None, [], True),
            ("ok", None, ["v"], True),
            ("failed", ["u"], [], True),
            ("failed", ["u"], ["v"], False),
            ("failed", ["u", "v"], ["v"], True),
            ("failed", ["u", "v"], ["v", "w"], False),
            ("failed", None, ["v"], False),
            ("trying", None, ["v"], True),
        ],
    )
    def test_an_outcome_holds_while_the_same_urls_would_be_tried(self, status, tried, others, holds):
        assert self.line("a", "u", status, tried_urls=tried).holds_for(others) == holds

    def test_a_failure_is_no_longer_kept_once_the_item_has_another_url(self, server, paths):
        write_items(paths, {"a": server.url("/a")})
        self.leave(paths, [self.failed(server)])
        others = {"other_image_urls": pl.Series([[server.url("/b", sends(jpeg()))]])}
        pl.read_parquet(paths.items).with_columns(**others).write_parquet(paths.items)
        assert images.download_images(settings(), paths)["ok"] == 1

    def test_failures_under_another_value_of_a_header_are_tried_again(self, server, paths):
        write_items(paths, {"a": server.url("/a", sends(jpeg()))})
        self.leave(paths, [self.failed(server)], headers={"*": {"X-Key": "wrong"}})
        assert images.download_images(settings(headers={"*": {"X-Key": "right"}}), paths)["ok"] == 1

    def test_failures_under_the_same_header_are_kept(self, server, paths):
        write_items(paths, {"a": server.url("/a", sends(jpeg()))})
        self.leave(paths, [self.failed(server)], headers={"*": {"X-Key": "right"}})
        assert images.download_images(settings(headers={"*": {"X-Key": "right"}}), paths)["ok"] == 0

    @pytest.mark.parametrize(("size", "hits"), [(256, 1), (20, 2)])
    def test_photos_under_other_settings_are_kept_where_the_size_is_the_same(self, server, paths, size, hits):
        write_items(paths, {"a": server.url("/a", sends(jpeg()))})
        images.download_images(settings(), paths)
        row = manifest(paths)["a"]
        paths.images_manifest.unlink()
        self.leave(paths, [Outcome(**row)])
        images.download_images(settings(size=size, threads=1), paths)
        assert server.hits["/a"] == hits
        assert manifest(paths)["a"]["width"] == min(40, size)

    def test_tries_are_counted_on(self, server, paths):
        write_items(paths, {"a": server.url("/a", sends(b"", 500))})
        self.leave(paths, [self.line("a", server.url("/a"), "trying", attempts=3, reason="http 500")])
        images.download_images(settings(attempts=4), paths)
        assert server.hits["/a"] == 1
        assert manifest(paths)["a"]["attempts"] == 4


class Killing:
    """Runs of one download that are killed when the server has answered so often."""

    def __init__(self, server, paths, chosen):
        self.server, self.paths, self.chosen = server, paths, chosen

    def run(self, until):
        """Returns whether the kill came before the end."""
        settled, hits = self.settled(), dict(self.server.hits)
        process = CONTEXT.Process(target=images.download_images, args=(self.chosen, self.paths))
        process.start()
        while not until() and process.is_alive():
            time.sleep(0.001)
        time.sleep(random.Random(len(hits)).uniform(0, 0.03))
        process.kill()
        process.join()
        assert process.exitcode in {0, -signal.SIGKILL}
        self.asks_for_none_of(settled, hits)
        return process.exitcode != 0

    def finish(self):
        settled, hits = self.settled(), dict(self.server.hits)
        images.download_images(self.chosen, self.paths)
        self.asks_for_none_of(settled, hits)

    def settled(self):
        """Paths of the URLs whose end the journals tell in whole lines."""
        journals = [path.read_bytes() for path in self.paths.images_journals if path.exists()]
        whole = [line for content in journals for line in content.rpartition(b"\n")[0].splitlines()[1:]]
        ended = [outcome for line in whole if (outcome := json.loads(line))["status"] != "trying"]
        return {outcome["url"].removeprefix(self.server.url("")) for outcome in ended}

    def asks_for_none_of(self, settled, hits):
        assert {path: self.server.hits[path] for path in settled} == {path: hits[path] for path in settled}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_again_and_again_ends_like_an_undisturbed_one(server, tmp_path, seed):
    server.answers = {f"/{n}": sends(jpeg(60 + n, 50, colour=(n, 0, 0))) for n in range(60)}
    server.answers |= {f"/{n}": sends(b"", 503) for n in range(0, 60, 10)}
    server.delay_s = 0.02
    catalogue = {f"item {n}": server.url(f"/{n}") for n in range(70)}  # ten of them answer 404
    chosen = settings(attempts=2)
    whole, killed = DatasetPaths(tmp_path / "whole"), DatasetPaths(tmp_path / "killed")
    for paths in (whole, killed):
        write_items(paths, catalogue)
    images.download_images(chosen, whole)
    undisturbed = server.hits.total()
    server.hits.clear()

    killing = Killing(server, killed, chosen)
    points = sorted(random.Random(seed).sample(range(1, undisturbed), 4))
    kills = sum(killing.run(lambda: server.hits.total() >= point) for point in points)  # noqa: B023  # called at once
    kills += killing.run(killed.images_manifest.exists)
    assert kills >= len(points)
    if killed.images_journal.exists():
        killing.finish()
    assert snapshot(killed) == snapshot(whole)
    assert server.hits.total() <= undisturbed + kills * chosen.threads  # what was in flight alone is asked for twice


class TestLocalPhotos:
    @pytest.fixture
    def folder(self, tmp_path):
        folder = tmp_path / "shop"
        (folder / "images").mkdir(parents=True)
        return folder

    @pytest.mark.parametrize("prefix", ["", "http://127.0.0.1:PORT/"], ids=["path", "URL of an older version"])
    def test_are_read_from_the_photo_folder_and_the_manifest_keeps_their_names(self, paths, folder, prefix):
        (folder / "images" / "a+b, c d.jpg").write_bytes(jpeg())
        url = f"{prefix}images/a+b, c d.jpg"
        write_items(paths, {"a": url, "b": f"{prefix}../secret", "c": f"{prefix}images"}, photos=folder)
        stats = images.download_images(settings(), paths)
        assert stats["failed_by_reason"] == {"outside the photo folder": 1, "no such file": 1}
        assert manifest(paths)["a"]["url"] == url
        assert images.open_photo(paths, "a").size == (40, 30)
        assert images.download_images(settings(), paths)["reused"] == 1

    def test_meet_the_limits_of_downloaded_ones(self, paths, folder):
        bodies = {
            "large": b"x" * 60_001,
            "wide": jpeg(400, 300),
            "text": b"<html>",
            "torn": jpeg(300, 300, quality=99)[:-700],
        }
        for name, body in bodies.items():
            (folder / name).write_bytes(body)
        write_items(paths, {name: name for name in bodies}, photos=folder)
        reasons = images.download_images(settings(max_bytes=60_000, max_pixels=100_000), paths)["failed_by_reason"]
        assert reasons == {"too many bytes": 1, "too many pixels": 1, "not an image": 1, "damaged image": 1}

    def test_without_a_photo_folder_fail_with_a_warning(self, paths, caplog):
        write_items(paths, {"a": "images/a.jpg", "b": "http://127.0.0.1:PORT/images/b.jpg"})
        assert images.download_images(settings(), paths)["failed_by_reason"] == {"no photo folder": 2}
        assert "the dataset has no photo folder: name it in [datasets.<name>.source]" in caplog.text

    def test_a_photo_folder_that_is_gone_stops_the_stage_and_removes_nothing(self, paths, folder):
        (folder / "a.jpg").write_bytes(jpeg())
        write_items(paths, {"a": "a.jpg"}, photos=folder)
        images.download_images(settings(), paths)
        before = snapshot(paths)
        folder.rename(folder.with_name("unmounted"))
        with pytest.raises(SourceError, match=r"photo folder .*shop of toy does not exist; restore it"):
            images.download_images(settings(), paths)
        assert snapshot(paths) == before


def test_real_photos(shared_data: Path, paths):
    with gzip.open(shared_data / "hm" / "meta.jsonl.gz", "rt", encoding="utf-8") as lines:
        items = [json.loads(next(lines)) for _ in range(40)]
    write_items(paths, {i["parent_asin"]: i["images"][0]["large"] for i in items}, photos=shared_data / "hm")
    stats = images.download_images(ImageSettings(size=96), paths)
    assert (stats["ok"], stats["items_with_photo_share"]) == (40, 1.0)
    assert pl.read_parquet(paths.images_manifest).select(pl.max_horizontal("width", "height").max()).item() <= 96
    assert images.open_photo(paths, items[0]["parent_asin"]).mode == "RGB"


def test_open_photo_names_what_is_missing_or_damaged(paths):
    with pytest.raises(MissingArtefactError):
        images.open_photo(paths, "a")
    paths.image("a").parent.mkdir(parents=True)
    paths.image("a").write_bytes(jpeg()[:300])
    with pytest.raises(ArtefactError, match="'a'"):
        images.open_photo(paths, "a")


def test_the_digest_is_that_of_the_manifest(server, paths):
    with pytest.raises(MissingArtefactError):
        images.manifest_digest(paths)
    write_items(paths, {"a": server.url("/a")})
    images.download_images(settings(), paths)
    failed = images.manifest_digest(paths)
    server.url("/a", sends(jpeg()))
    images.download_images(settings(), paths)
    assert images.manifest_digest(paths) != failed
