"""Photos that attack the decoder: none exceeds the limits of time and memory, and the next photo is decoded."""

import os
import signal
import threading
from pathlib import Path

import pytest
from PIL import Image

from pixrec_core.data import decoding, photos
from pixrec_core.data.decoding import Decoders, StoppedError, decode_photo
from pixrec_core.data.image_manifest import FINAL_REASONS
from pixrec_core.data.photos import CRASHES, KILLED, TOO_LARGE, TOO_SLOW, PhotoError
from tests.core.data.hostile_server import encoded, jpeg

PIXELS = 50_000_000
PROGRAM = Path(photos.__file__)


@pytest.fixture(scope="module")
def decoders():
    with Decoders(256) as decoders:
        yield decoders


@pytest.fixture(scope="module")
def slow():
    """A progressive JPEG whose last scan is repeated: decoding it takes minutes."""
    whole = jpeg(7000, 7000, progressive=True, quality=30)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * (1_000_000 // len(last)) + whole[-2:]


def reason(decoders, body):
    with pytest.raises(PhotoError) as caught:
        decoders.decode(body, 64, PIXELS)
    return str(caught.value)


def processes(decoders):
    """Ids of the decoding processes; all are idle."""
    found = [decoders._idle.get_nowait() for _ in range(decoders._idle.qsize())]
    for process in found:
        decoders._idle.put(process)
    return [process._popen.pid for process in found if process]


def test_a_photo_is_decoded_as_in_this_process(decoders):
    body = jpeg(300, 200)
    photo = decoders.decode(body, 64, PIXELS)
    assert photo == (photos.encode(photos.normalise(body, 64, PIXELS)), 64, 43)


def test_the_setting_alone_limits_the_pixels():
    """Pillow refuses more than 178,956,970 by itself."""
    photo = Image.new("1", (13_400, 13_400))
    photo.paste(1, (0, 0, 6_700, 13_400))
    with Decoders(1024) as decoders:
        body = encoded(photo, "PNG", compress_level=1)
        assert decoders.decode(body, 64, 200_000_000)[1:] == (64, 64)
        with pytest.raises(PhotoError, match="too many pixels"):
            decoders.decode(body, 64, 179_000_000)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", "not an image"),
        (jpeg(300, 300, quality=99)[:-700], "damaged image"),
        (encoded(Image.new("1", (8000, 8000)), "PNG"), "too many pixels"),
        (encoded(Image.new("RGB", (1, 1)), "GIF"), "placeholder"),
        (encoded(Image.new("RGBA", (30, 30)), "PNG"), "placeholder"),
    ],
)
def test_reasons(decoders, body, expected):
    assert reason(decoders, body) == expected


@pytest.mark.parametrize(
    "body",
    [
        encoded(Image.new("RGB", (7000, 7000)), "PNG", compress_level=1),
        encoded(Image.new("RGB", (1, 49_000_000)), "PNG", compress_level=1),
        encoded(Image.new("CMYK", (7000, 7000)), "TIFF", compression="tiff_deflate"),
    ],
    ids=["square", "tall", "CMYK"],
)
def test_memory_is_limited(body):
    with Decoders(256) as one:
        one._memory = 150 * 2**20
        assert reason(one, body) == TOO_LARGE
        assert one.decode(jpeg(), 64, PIXELS).width == 40


def test_cpu_time_is_limited_and_the_process_replaced(slow, monkeypatch, tmp_path):
    program = tmp_path / "photos.py"
    program.write_text(PROGRAM.read_text().replace("DECODE_S: Final = 10.0", "DECODE_S: Final = 0.2"))
    monkeypatch.setattr(photos, "__file__", str(program))
    with Decoders(256) as decoders:
        decoders.decode(jpeg(), 64, PIXELS)
        before = processes(decoders)
        assert reason(decoders, slow) == TOO_SLOW
        assert processes(decoders) == []
        assert decoders.decode(jpeg(), 64, PIXELS).width == 40
        assert processes(decoders) != before


def test_a_process_that_something_else_has_killed_is_replaced(decoders):
    decoders.decode(jpeg(), 64, PIXELS)
    for process in processes(decoders):
        os.kill(process, signal.SIGKILL)
    assert decoders.decode(jpeg(), 64, PIXELS).width == 40


@pytest.mark.parametrize(
    ("end", "expected"), [("os.abort()", CRASHES), ("os.kill(os.getpid(), signal.SIGKILL)", KILLED)]
)
def test_a_photo_that_ends_the_decoder_has_a_reason(monkeypatch, tmp_path, end, expected):
    program = tmp_path / "photos.py"
    program.write_text(
        PROGRAM.read_text().replace("body = requests.read(length)", end).replace("import signal", "import os, signal")
    )
    monkeypatch.setattr(photos, "__file__", str(program))
    with Decoders(256) as decoders:
        assert reason(decoders, jpeg()) == expected


def test_only_reasons_that_the_photo_has_are_final():
    """Memory that ran out once may suffice in the next run."""
    assert CRASHES in FINAL_REASONS
    assert KILLED not in FINAL_REASONS


def test_a_decoder_that_does_not_start_is_an_error(monkeypatch, tmp_path):
    (tmp_path / "photos.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(photos, "__file__", str(tmp_path / "photos.py"))
    with Decoders(256) as decoders, pytest.raises(decoding.PixRecError, match=r"does not start \(exit code 3\)"):
        decoders.decode(jpeg(), 64, PIXELS)


def test_stop_ends_a_photo_that_takes_long(slow):
    stop = threading.Event()
    with Decoders(256, stop) as decoders:
        decoders.decode(jpeg(), 64, PIXELS)
        (process,) = processes(decoders)
        threading.Timer(0.2, stop.set).start()
        with pytest.raises(StoppedError):  # at the limit it would be a PhotoError
            decoders.decode(slow, 64, PIXELS)
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


@pytest.mark.parametrize(("memory_mb", "cores", "count"), [(256, 8, 1), (2048, 8, 2), (2048, 1, 1), (9000, 4, 4)])
def test_all_processes_share_the_memory(monkeypatch, memory_mb, cores, count):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    decoders = Decoders(memory_mb)
    assert decoders._idle.qsize() == count
    assert decoders._memory * count <= memory_mb * 2**20


def test_an_uploaded_photo_goes_through_the_same_limits():
    assert decode_photo(jpeg(300, 200), 64, PIXELS).size == (64, 43)
    with pytest.raises(PhotoError, match="too many pixels"):
        decode_photo(jpeg(300, 200), 64, 1000)
