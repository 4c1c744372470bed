"""Downloads from correct and faulty servers end with the right bytes or a clear error."""

import gzip
import hashlib
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import requests

from pixrec_core import files, progress
from pixrec_core.data import raw_lines, retrying
from pixrec_core.data.sources import _download
from pixrec_core.data.sources._download import download
from pixrec_core.errors import SourceError
from tests.core.data.hostile_server import hostile_server, in_turn, raw, sends

WHOLE = gzip.compress(os.urandom(200_000), mtime=0)
OTHER = gzip.compress(os.urandom(150_000), mtime=0)
PATH = "/raw/Toys.jsonl.gz"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(retrying, "FIRST_WAIT_S", 0.001)


@pytest.fixture
def server():
    with hostile_server() as server:
        yield server


@pytest.fixture
def target(tmp_path):
    return tmp_path / "raw" / "reviews.jsonl.gz"


def ranged(body=WHOLE, etag='"one"', modified=None, cut=None, asked=None, ranges=True, extra=b""):
    """Return an answer with a file; the connection ends after `cut` bytes, and `asked` collects request headers."""

    def answer(handler):
        headers = handler.headers
        if asked is not None:
            asked.append({name: headers[name] for name in ("Range", "If-Range", "If-None-Match") if headers[name]})
        same = headers["If-None-Match"] == etag and etag
        goes_on = ranges and headers["Range"] and headers["If-Range"] in (etag, modified)
        start = int(headers["Range"].removeprefix("bytes=").removesuffix("-")) if goes_on else 0
        handler.send_response(304 if same else 206 if goes_on else 200)
        for name, value in (("ETag", etag), ("Last-Modified", modified)):
            if value:
                handler.send_header(name, value)
        part = b"" if same else body[start:] + extra
        if goes_on:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        handler.send_header("Content-Length", str(len(part)))
        handler.end_headers()
        handler.wfile.write(part if cut is None else part[:cut])
        handler.close_connection = cut is not None

    return answer


def left_over(target):
    return sorted(path.name for path in target.parent.iterdir() if path != target)


def assert_whole(target, body=WHOLE):
    assert target.read_bytes() == body
    assert left_over(target) == [".reviews.jsonl.gz.json"]


def test_downloads_the_file_and_records_its_version(server, target):
    url = server.url(PATH, ranged(modified="Thu, 01 Jan 2026 00:00:00 GMT"))
    download(url, target)
    assert_whole(target)
    assert files.read_json(target.with_name(".reviews.jsonl.gz.json")) == {
        "key": hashlib.sha256(url.encode()).hexdigest()[:16],
        "url": f"http://{server.host}{PATH}", "etag": '"one"', "modified": "Thu, 01 Jan 2026 00:00:00 GMT",
        "length": len(WHOLE), "bytes": len(WHOLE), "sha256": hashlib.sha256(WHOLE).hexdigest(),
    }  # fmt: skip


@pytest.mark.parametrize("validators", [{}, {"etag": None, "modified": "Thu, 01 Jan 2026 00:00:00 GMT"}])
def test_truncated_bodies_are_resumed(server, target, validators):
    asked = []
    download(server.url(PATH, ranged(cut=60_000, asked=asked, **validators)), target)
    assert_whole(target)
    validator = validators.get("modified", '"one"')
    assert asked == [{}] + [{"Range": f"bytes={60_000 * n}-", "If-Range": validator} for n in (1, 2, 3)]


@pytest.mark.parametrize("odd", [{"ranges": False}, {"etag": None}, {"etag": 'W/"one"'}])
def test_without_ranges_or_a_strong_etag_each_attempt_starts_over(server, target, odd):
    asked = []
    answers = [ranged(cut=60_000, asked=asked, **odd), ranged(asked=asked, **odd)]
    download(server.url(PATH, in_turn(*answers)), target)
    assert_whole(target)
    assert ("Range" in asked[1]) == (odd == {"ranges": False})


def test_a_file_that_changes_on_the_server_is_never_mixed(server, target):
    answers = [ranged(cut=60_000), ranged(OTHER, '"two"', cut=70_000), ranged(OTHER, '"two"')]
    download(server.url(PATH, in_turn(*answers)), target)
    assert_whole(target, OTHER)


@pytest.mark.parametrize("etag", ['"two"', '"one"', None])
def test_a_server_that_ignores_if_range_is_detected(server, target, etag):
    """By the ETag of the partial response, or by the length of the complete file."""

    def careless(handler):
        start = 60_000
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{len(OTHER) - 1}/{len(OTHER)}")
        handler.send_header("Content-Length", str(len(OTHER) - start))
        if etag:
            handler.send_header("ETag", etag)
        handler.end_headers()
        handler.wfile.write(OTHER[start:])

    download(server.url(PATH, in_turn(ranged(cut=60_000), careless, ranged(OTHER, '"two"'))), target)
    assert_whole(target, OTHER)


def test_another_range_than_requested_is_rejected(server, target):
    def shifted(handler):
        sends(WHOLE[60_001:], 206, Content_Range=f"bytes 60001-{len(WHOLE) - 1}/{len(WHOLE)}")(handler)

    download(server.url(PATH, in_turn(ranged(cut=60_000), shifted, ranged())), target)
    assert_whole(target)


def test_too_many_bytes_start_the_download_over(server, target):
    download(server.url(PATH, in_turn(ranged(cut=60_000), ranged(extra=b"x" * 3_000_000), ranged())), target)
    assert_whole(target)


def test_bytes_beyond_the_declared_length_are_not_part_of_the_file(server, target):
    answer = raw(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%sand more" % (len(WHOLE), WHOLE))
    download(server.url(PATH, answer), target)
    assert_whole(target)


def test_a_file_shorter_than_before_starts_the_download_over(server, target):
    download(server.url(PATH, in_turn(ranged(cut=60_000), sends(b"", 416), ranged(OTHER, '"two"'))), target)
    assert_whole(target, OTHER)


@pytest.mark.parametrize("code", [500, 503, 429, 408])
def test_transient_errors_are_tried_again(server, target, code):
    download(server.url(PATH, in_turn(sends(b"", code), sends(b"", code, Retry_After="0"), ranged())), target)
    assert_whole(target)


@pytest.mark.parametrize("code", [404, 403, 401, 410])
def test_permanent_errors_are_not_retried_and_say_what_to_correct(server, target, code):
    with pytest.raises(SourceError, match=rf"{PATH} cannot be downloaded: http {code}; correct the URL or"):
        download(server.url(PATH, sends(b"", code)), target)
    assert server.hits[PATH] == 1
    assert not target.exists()


def test_failed_attempts_are_limited_and_the_next_run_resumes(server, target):
    url = server.url(PATH, in_turn(ranged(cut=60_000), sends(b"", 503)))
    with pytest.raises(SourceError, match=r"http 503, 5 times in a row; run again to resume from byte 60,000"):
        download(url, target)
    assert server.hits[PATH] == _download.ATTEMPTS
    asked = []
    download(server.url(PATH, ranged(asked=asked)), target)
    assert asked == [{"Range": "bytes=60000-", "If-Range": '"one"'}]
    assert_whole(target)


def test_attempts_with_new_bytes_are_not_counted(server, target):
    download(server.url(PATH, ranged(cut=len(WHOLE) // 12)), target)
    assert server.hits[PATH] > 2 * _download.ATTEMPTS
    assert_whole(target)


def test_attempts_are_limited_if_a_server_without_ranges_truncates(server, target):
    with pytest.raises(SourceError, match="5 times in a row"):
        download(server.url(PATH, ranged(cut=60_000, ranges=False)), target)
    assert server.hits[PATH] == _download.ATTEMPTS


def test_an_unreachable_server_is_an_error(target, server):
    with pytest.raises(SourceError, match=r"no connection, 5 times in a row"):
        download("http://127.0.0.1:1/x.gz", target)


def test_a_complete_file_is_not_downloaded_again(server, target):
    asked = []
    url = server.url(PATH, ranged(asked=asked))
    download(url, target)
    before = target.stat().st_mtime_ns
    download(url, target)
    assert asked == [{}, {"If-None-Match": '"one"'}]
    assert target.stat().st_mtime_ns == before
    assert_whole(target)


def test_without_conditional_requests_the_body_of_an_unchanged_file_is_not_read(server, target):
    url = server.url(PATH, sends(WHOLE, ETag='"one"'))
    download(url, target)
    before = target.stat().st_mtime_ns
    download(url, target)
    assert target.stat().st_mtime_ns == before
    assert_whole(target)


@pytest.mark.parametrize("change", ["server", "file", "url"])
def test_a_changed_file_is_downloaded_again(server, target, change):
    download(server.url(PATH, ranged()), target)
    url, body = server.url(PATH), WHOLE
    if change == "server":
        server.url(PATH, ranged(OTHER, '"two"'))
        body = OTHER
    elif change == "file":
        target.write_bytes(b"spoilt")
    else:
        url, body = server.url("/other.gz", ranged(OTHER)), OTHER
    download(url, target)
    assert_whole(target, body)


MONDAY = "Mon, 02 Nov 2026 00:00:00 GMT"


def test_another_query_may_name_another_file(server, target):
    """Its file may be as old or older, so its time says nothing."""
    for name, body in (("books", WHOLE), ("films", OTHER)):
        url = server.url(f"{PATH}?file={name}", ranged(body, etag=None, modified=MONDAY))
        download(url, target)
        assert_whole(target, body)


def test_a_partial_file_of_another_query_needs_a_strong_etag(server, target):
    cut = in_turn(ranged(etag=None, modified=MONDAY, cut=60_000), sends(b"", 404))
    with pytest.raises(SourceError):
        download(server.url(f"{PATH}?file=books", cut), target)
    download(server.url(f"{PATH}?file=films", ranged(OTHER, etag=None, modified=MONDAY)), target)
    assert_whole(target, OTHER)


def test_another_signature_of_the_same_file_is_not_downloaded_again(server, target):
    asked = []
    for signature in "ab":
        download(server.url(f"{PATH}?signature={signature}", ranged(asked=asked)), target)
    assert asked == [{}, {"If-None-Match": '"one"'}]
    assert_whole(target)


def test_a_partial_file_of_another_url_is_not_resumed(server, target):
    with pytest.raises(SourceError):
        download(server.url("/a.gz", in_turn(ranged(cut=60_000), sends(b"", 404))), target)
    download(server.url("/b.gz", ranged(OTHER)), target)
    assert_whole(target, OTHER)


def test_a_wrong_checksum_is_an_error(server, target):
    url = server.url(PATH, ranged())
    right = hashlib.sha256(WHOLE).hexdigest()
    with pytest.raises(SourceError, match=rf"has the checksum {right}, expected {'0' * 64}; the file"):
        download(url, target, "0" * 64)
    assert left_over(target) == []
    assert not target.exists()
    download(url, target, right.upper())
    assert_whole(target)
    with pytest.raises(SourceError, match=", expected "):
        download(url, target, "1" * 64)


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (WHOLE[:-4], "ended before the end-of-stream marker"),
        (WHOLE[:-8] + b"\0" * 8, "CRC"),
        (b"<html>sign in</html>", "not a gzip file"),
    ],
)
def test_a_damaged_file_is_reported_and_removed(server, target, body, fault):
    with pytest.raises(SourceError, match=rf"is complete but damaged \(.*{fault}.*Run again"):
        download(server.url(PATH, ranged(body)), target)
    assert left_over(target) == []
    assert not target.exists()


def test_a_plain_file_is_accepted(server, tmp_path):
    download(server.url("/x.jsonl", sends(b"{}\n")), tmp_path / "reviews.jsonl")
    assert (tmp_path / "reviews.jsonl").read_bytes() == b"{}\n"


def test_a_chunked_body(server, target):
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (WHOLE[:1000], WHOLE[1000:])) + b"0\r\n\r\n"
    download(server.url(PATH, raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)), target)
    assert_whole(target)


def test_too_little_disk_space_is_an_error_before_the_download(server, target, monkeypatch):
    monkeypatch.setattr(_download.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(SourceError, match=r"has 1,000 bytes free, but .* needs 2\d\d,\d\d\d more; free disk space"):
        download(server.url(PATH, ranged()), target)


def test_a_full_disk_is_an_error(server, target, monkeypatch):
    target.parent.mkdir()
    monkeypatch.setattr(_download._Download, "_start_over", lambda self: None)  # it would remove the full disk
    target.with_name(".reviews.jsonl.gz.partial").symlink_to("/dev/full")
    with pytest.raises(SourceError, match="No space left on device; free disk space and run again"):
        download(server.url(PATH, ranged()), target)


def test_records_logs_and_errors_contain_no_secrets(server, target, caplog):
    caplog.set_level("DEBUG", logger="pixrec_core")
    secret = f"http://shop:s3cret@{server.host}{PATH}?X-Signature=k3y"
    seen = []

    def guarded(handler):
        seen.append((handler.headers["Authorization"], handler.path))
        ranged(cut=60_000)(handler)

    server.answers[f"{PATH}?X-Signature=k3y"] = in_turn(guarded, ranged())
    download(secret, target)
    assert seen == [("Basic c2hvcDpzM2NyZXQ=", f"{PATH}?X-Signature=k3y")]
    server.answers[f"{PATH}?X-Signature=k3y"] = sends(b"", 404)
    with pytest.raises(SourceError) as caught:
        download(secret, target)
    texts = [*caplog.messages, str(caught.value), target.with_name(".reviews.jsonl.gz.json").read_text()]
    assert not [text for text in texts if "s3cret" in text or "k3y" in text]
    assert all(server.host in text for text in texts)


def test_a_long_download_logs_its_progress(server, target, caplog, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    caplog.set_level("INFO", logger="pixrec_core")
    body = gzip.compress(os.urandom(2 * raw_lines.CHUNK), mtime=0)
    download(server.url(PATH, ranged(body)), target)
    assert caplog.messages[0].startswith("reviews.jsonl.gz, MiB: 1 of 3 (33 %), ")


def test_certificates_are_checked(monkeypatch, target):
    """Requests verify certificates, and an invalid one ends the download at once."""
    seen = []

    def send(self, request, **options):
        seen.append(options["verify"])
        raise requests.exceptions.SSLError("self-signed certificate")

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send)
    with pytest.raises(SourceError, match="its certificate is not valid; correct the URL"):
        download("https://127.0.0.1:1/x.gz", target)
    assert seen in ([True], [os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")])


KILLED = """
import sys
from pathlib import Path
from pixrec_core.data.sources._download import download
download(sys.argv[1], Path(sys.argv[2]))
"""


def test_a_killed_run_is_resumed(server, target, tmp_path):
    """SIGKILL in the middle of a body, twice; the third run ends with the server's bytes."""
    body = gzip.compress(os.urandom(3 * raw_lines.CHUNK), mtime=0)
    halts = []

    def slow(handler):
        start = int((handler.headers["Range"] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        halts.append(start)
        handler.send_response(206 if start else 200)
        handler.send_header("ETag", '"one"')
        handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        handler.send_header("Content-Length", str(len(body) - start))
        handler.end_headers()
        handler.wfile.write(body[start : start + raw_lines.CHUNK + 100])
        if len(halts) <= 2:
            handler.server.ends.wait()
        handler.wfile.write(body[start + raw_lines.CHUNK + 100 :])

    partial = target.with_name(".reviews.jsonl.gz.partial")
    url = server.url(PATH, slow)
    for run in (1, 2):
        child = subprocess.Popen([sys.executable, "-c", KILLED, url, str(target)])
        while not (partial.exists() and partial.stat().st_size >= run * raw_lines.CHUNK):
            assert child.poll() is None
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
        child.wait()
    download(url, target)
    assert halts == [0, raw_lines.CHUNK, 2 * raw_lines.CHUNK]
    assert_whole(target, body)


@pytest.mark.parametrize("moment", ["before the note", "before the name", "after the name"])
def test_a_run_killed_at_the_end_downloads_nothing_again(server, target, monkeypatch, moment):
    """A run killed between any two of the last steps leaves the files that the next run needs."""
    url = server.url(PATH, ranged())
    download(url, target)
    note, partial = target.with_name(".reviews.jsonl.gz.json"), target.with_name(".reviews.jsonl.gz.partial")
    partial_note = target.with_name(".reviews.jsonl.gz.partial.json")
    partial_note.write_bytes(note.read_bytes())
    if moment != "after the name":
        target.rename(partial)
    if moment == "before the note":
        note.unlink()
    download(url, target)
    assert server.hits[PATH] == (2 if moment == "after the name" else 1)
    assert_whole(target)
