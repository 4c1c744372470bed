import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from pixrec_core.data import photos
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
    """A large JPEG is decoded at a quarter of its size; the result is that of the full size, nearly."""
    blocks = np.random.default_rng(0).integers(0, 256, (shape[0] // 20, shape[1] // 20, 3), dtype=np.uint8)
    body = encoded(Image.fromarray(blocks).resize(shape[::-1], Image.Resampling.BICUBIC), "JPEG", quality=95)
    got = small(body, size=256, max_pixels=3_000_000)
    careful = Image.open(io.BytesIO(body)).resize(got.size, Image.Resampling.LANCZOS)
    error = np.asarray(got, dtype=float) - np.asarray(careful, dtype=float)
    assert np.sqrt((error**2).mean()) < 1.5


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
    """100 MB in 100 kB, in chunks that are no pixels: the picture is kept without them."""
    kind, head = bomb
    body = png(8, 8, (kind, head + zlib.compress(b"\0" * 100_000_000)))
    tracemalloc.start()
    assert small(body).size == (8, 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


@pytest.mark.parametrize("length", [70_000, 3_000_000])
@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"npOl"])
def test_png_with_large_or_damaged_metadata(kind, length):
    heads = {b"zTXt": b"note\0\0", b"iTXt": b"note\0\0\0\0\0"}
    content = heads.get(kind, b"") + bytes(range(256)) * (length // 256)
    assert small(png(8, 8, (kind, content))).size == (8, 8)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40]
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_is_ignored(kind, exif):
    assert small(encoded(Image.new("RGB", (40, 30), RED), kind, exif=exif)).size == (40, 30)


@pytest.mark.parametrize("orientation", [0, 9, 99])
def test_an_unknown_orientation_is_ignored(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert small(encoded(Image.new("RGB", (40, 30), RED), "PNG", exif=exif)).size == (40, 30)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_that_of_pillow(orientation):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    body = encoded(photo, "PNG", exif=exif)
    assert small(body).tobytes() == ImageOps.exif_transpose(Image.open(io.BytesIO(body))).tobytes()


def profile_of(space):
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes()


def wide_profile():
    """A profile of sRGB whose red and green primaries are exchanged, so that its effect is known by hand."""
    profile = bytearray(profile_of("sRGB"))
    tags = {bytes(profile[at : at + 4]): at for at in range(132, 132 + 12 * int.from_bytes(profile[128:132]), 12)}
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "Wide".encode("utf-16-be")).replace(b"sRGB", b"Wide")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_are_converted_from_their_profile_to_srgb(kind, mode):
    if (kind, mode) == ("JPEG", "RGBA"):
        pytest.skip("JPEG has no transparency")
    body = encoded(Image.new(mode, (8, 8), (200, 40, 60)), kind, icc_profile=wide_profile())
    assert_near(small(body).getpixel((4, 4)), (40, 200, 60), within=8)


@pytest.mark.parametrize("profile", [b"", b"profile" * 9, profile_of("LAB"), profile_of("sRGB"), wide_profile()[:200]])
def test_a_profile_that_cannot_be_used_leaves_the_colours(profile):
    body = encoded(Image.new("RGB", (8, 8), RED), "PNG", icc_profile=profile)
    assert small(body).getpixel((4, 4)) == RED


def test_a_profile_of_another_mode_leaves_the_greys():
    body = encoded(Image.new("L", (8, 8), 77), "PNG", icc_profile=wide_profile())
    assert small(body).getpixel((4, 4)) == (77, 77, 77)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
@pytest.mark.parametrize("white", [1, 255, 65_535])
def test_deep_grey_keeps_its_shades(dtype, white):
    if (dtype, white) == (np.int32, 1):
        pytest.skip("0 and 1 are near black among whole numbers")
    shades = np.array([[0, 0.25 * white, 0.5 * white, white]]).astype(dtype)
    photo = small(encoded(Image.fromarray(shades), "TIFF"))
    assert [photo.getpixel((x, 0))[0] for x in range(4)] == pytest.approx([0, 63, 127, 255], abs=1)


@pytest.mark.parametrize(
    ("kind", "cut", "options"),
    [
        ("JPEG", 2, {}),
        ("JPEG", 1, {}),
        ("JPEG", 12, {}),
        ("JPEG", 2, {"progressive": True}),
        ("PNG", 12, {}),
        ("PNG", 5, {}),
        ("GIF", 1, {}),
    ],
)
def test_a_missing_end_is_ignored(kind, cut, options):
    shades = np.tile(np.arange(0, 250, 2, dtype=np.uint8), (125, 1))
    whole = encoded(Image.fromarray(shades), kind, **options)
    got, expected = np.asarray(small(whole[:-cut])), np.asarray(small(whole))
    assert np.array_equal(got[:-4], expected[:-4])


def test_large_photos_are_converted_in_parts(monkeypatch):
    """In parts or whole: the same photo."""
    pixels = np.random.default_rng(0).integers(0, 256, (90, 130, 4), dtype=np.uint8)
    body = encoded(Image.fromarray(pixels), "PNG")
    whole = small(body, size=10)
    monkeypatch.setattr(photos, "_TILE", 16)
    assert small(body, size=10).tobytes() == whole.tobytes()


@pytest.mark.parametrize(
    ("photo", "expected"),
    [
        (Image.new("RGB", (1, 1)), True),
        (Image.new("RGB", (300, 200), "white"), True),
        (Image.new("RGB", (300, 200), (203, 200, 198)), True),
        (Image.new("RGB", (2, 2), (9, 200, 77)), True),
        (Image.new("RGB", (300, 200), (9, 200, 77)), False),
        (Image.linear_gradient("L").convert("RGB"), False),
    ],
)
def test_photos_of_one_grey_or_a_few_pixels_are_placeholders(photo, expected):
    assert photos.is_placeholder(photo) == expected


def test_stored_bytes_depend_on_the_pixels_only():
    body = jpeg(200, 100, comment=b"shot by nobody", icc_profile=b"profile" * 9)
    first, second = (encode(small(body)) for _ in range(2))
    assert first == second
    info = Image.open(io.BytesIO(first)).info
    assert "comment" not in info
    assert "icc_profile" not in info
