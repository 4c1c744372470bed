import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from pixrec_core.data.photos import PhotoError, encode, normalise
from tests.core.data.hostile_server import encoded, jpeg

RED, WHITE = (255, 0, 0), (255, 255, 255)


def small(body, size=64, max_pixels=1_000_000):
    photo = normalise(body, size, max_pixels)
    assert photo.mode == "RGB"
    return photo


def assert_near(pixel, expected, within=3):
    assert max(abs(a - b) for a, b in zip(pixel, expected, strict=True)) <= within


@pytest.mark.parametrize(
    ("given", "stored"),
    [((40, 30), (40, 30)), ((64, 64), (64, 64)), ((640, 480), (64, 48)), ((100, 1000), (6, 64)), ((5000, 1), (64, 1))],
)
def test_large_photos_are_scaled_down_and_small_ones_are_kept(given, stored):
    assert small(jpeg(*given)).size == stored


@pytest.mark.parametrize("shape", [(1500, 1000), (1000, 1500), (1500, 1500)])
def test_decoding_at_a_smaller_scale_keeps_the_detail(shape):
    """A large JPEG is decoded at half its size; the result equals that of decoding the full size."""
    blocks = np.random.default_rng(0).integers(0, 256, (shape[0] // 20, shape[1] // 20, 3), dtype=np.uint8)
    body = encoded(Image.fromarray(blocks).resize(shape[::-1], Image.Resampling.BICUBIC), "JPEG", quality=95)
    got = small(body, size=256, max_pixels=3_000_000)
    careful = Image.open(io.BytesIO(body)).resize(got.size, Image.Resampling.LANCZOS)
    error = np.asarray(got, dtype=float) - np.asarray(careful, dtype=float)
    assert np.sqrt((error**2).mean()) < 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "TIFF"])
def test_formats_of_the_web(kind):
    assert_near(small(encoded(Image.new("RGB", (9, 7), RED), kind)).getpixel((4, 3)), RED, within=4)


@pytest.mark.parametrize("kind", ["PPM", "ICO", "PCX", "EPS", "PDF"])
def test_other_formats_are_rejected(kind):
    with pytest.raises(PhotoError, match="not an image"):
        small(encoded(Image.new("RGB", (32, 32), RED), kind))


def test_exif_orientation_is_applied():
    wide = Image.new("RGB", (60, 20), RED)
    wide.paste((0, 0, 255), (0, 0, 20, 20))  # the blue end is on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: left comes to the top
    upright = small(encoded(wide, "JPEG", exif=exif, quality=95, subsampling=0))
    assert upright.size == (20, 60)
    assert_near(upright.getpixel((10, 5)), (0, 0, 255), within=8)
    assert_near(upright.getpixel((10, 50)), RED, within=8)
    assert "exif" not in Image.open(io.BytesIO(encode(upright))).info


def test_invalid_exif_is_ignored():
    assert small(jpeg(exif=b"Exif\x00\x00" + b"\xff" * 40)).size == (40, 30)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_photos_have_a_white_background(mode):
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0)).convert(mode)
    assert small(encoded(clear, "PNG")).getpixel((1, 1)) == WHITE


def test_half_alpha_is_half_white():
    assert_near(small(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 128)), "PNG")).getpixel((1, 1)), (255, 127, 127), 1)


def test_palette_with_a_transparent_colour():
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.putpixel((0, 0), 0)
    photo = small(encoded(palette, "PNG", transparency=0))
    assert photo.getpixel((0, 0)) == WHITE
    assert photo.getpixel((2, 2)) == RED


def test_cmyk():
    assert_near(small(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")).getpixel((4, 4)), RED, within=5)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, (0, 255, 0), (0, 0, 255))]
    animation = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
    assert_near(small(animation).getpixel((4, 4)), RED, within=4)


def test_sixteen_bit_grey_keeps_its_shades():
    shades = np.array([[0, 0x4080, 0x80FF, 0xFFFF]], dtype=np.uint16)
    photo = small(encoded(Image.fromarray(shades), "PNG"))
    assert [photo.getpixel((x, 0)) for x in range(4)] == [(v, v, v) for v in (0, 0x40, 0x80, 0xFF)]


def test_black_and_white():
    assert small(encoded(Image.new("1", (8, 8), 1), "PNG")).getpixel((4, 4)) == WHITE


@pytest.mark.parametrize(
    "body", [b"", b"<html><body>Not found</body></html>", b"\xff\xd8\xff", b"GIF89a", b"\x00" * 999]
)
def test_bytes_that_are_not_an_image(body):
    with pytest.raises(PhotoError, match=r"not an image|damaged image"):
        small(body)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_truncated_files(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8))
    whole = encoded(noise, kind)
    with pytest.raises(PhotoError, match=r"damaged image|not an image"):
        small(whole[: len(whole) // 2])


def png(width, height, *extra):
    """A PNG that says it is that large, in 60 bytes; `extra` chunks, kind and data, stand before its pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), *extra]
    chunks += [(b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


@pytest.mark.parametrize("side", [1001, 10_000, 12_000, 60_000])  # under and over the two limits of Pillow itself
def test_decompression_bombs_are_rejected_by_their_header(side):
    with pytest.raises(PhotoError, match="too many pixels"):
        small(png(side, side))


@pytest.mark.parametrize(
    "bomb",
    [(b"zTXt", b"note\0\0"), (b"iTXt", b"note\0\1\0\0\0"), (b"iCCP", b"profile\0\0")],
    ids=["text", "international text", "profile"],
)
def test_compressed_chunks_other_than_pixels_are_not_unpacked(bomb):
    """100 MB in 100 kB, in chunks that are not read."""
    kind, head = bomb
    body = png(8, 8, (kind, head + zlib.compress(b"\0" * 100_000_000)))
    tracemalloc.start()
    with pytest.raises(PhotoError, match=r"not an image|damaged image"):
        small(body)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


def test_stored_bytes_depend_on_the_pixels_only():
    body = jpeg(200, 100, comment=b"shot by nobody", icc_profile=b"profile" * 9)
    first, second = (encode(small(body)) for _ in range(2))
    assert first == second
    info = Image.open(io.BytesIO(first)).info
    assert "comment" not in info
    assert "icc_profile" not in info
