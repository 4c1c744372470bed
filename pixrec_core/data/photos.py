"""Decode photos of any format, hostile ones included, and encode them as small RGB JPEGs.

Run as a program, this file is a decoding process of `decoding.Decoders`: it answers requests on standard input. So it
imports nothing but Pillow and the standard library.
"""

import functools
import io
import resource
import signal
import struct
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any, BinaryIO, Final

from PIL import AvifImagePlugin, Image, ImageCms

#: Formats of the web. Pillow has more decoders, some of which start other programs.
FORMATS: Final = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "TIFF")
QUALITY: Final = 90
ORIENTATION: Final = 0x0112  # EXIF tag
BOMBS: Final = (Image.DecompressionBombError, Image.DecompressionBombWarning)

#: Reasons of photos that exceed the limits of a decoding process.
TOO_SLOW: Final = "takes too long to decode"
TOO_LARGE: Final = "needs too much memory to decode"
CRASHES: Final = "crashes the decoder"
KILLED: Final = "the decoder was killed"

DECODE_S: Final = 10.0  # CPU time of one photo; 50 million pixels take 1 to 3 s
REQUEST: Final = struct.Struct("<IIQ")  # bytes of the photo, size, max_pixels
ANSWER: Final = struct.Struct("<?III")  # whether it is a photo, width, height, bytes of the JPEG or the reason
READY: Final = b"\n"  # sent before the first answer

_TINY: Final = 8  # pixels
_GREY: Final = 12  # difference between the bands of a grey, which JPEG may have tinted
_TILE: Final = 1024  # pixels: edge of the parts in which a large photo is converted to RGB
_UPRIGHT: Final = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT,),
    3: (Image.Transpose.ROTATE_180,),
    4: (Image.Transpose.FLIP_TOP_BOTTOM,),
    5: (Image.Transpose.TRANSPOSE,),
    6: (Image.Transpose.ROTATE_270,),
    7: (Image.Transpose.TRANSVERSE,),
    8: (Image.Transpose.ROTATE_90,),
}

_PNG_START: Final = b"\x89PNG\r\n\x1a\n"
_PNG_END: Final = b"\0\0\0\0IEND\xae\x42\x60\x82"
_PNG_CHUNKS: Final = {b"IHDR", b"PLTE", b"IDAT", b"tRNS", b"iCCP", b"eXIf"}
_JPEG_END: Final = b"\xff\xd9"
_MAX_PROFILE: Final = 1_000_000  # bytes of an unpacked colour profile
_COLOUR_SPACES: Final = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}


class PhotoError(Exception):
    """A photo cannot be used; the message is the reason in a few words, the same for all failures of one kind."""


def normalise(body: bytes, size: int, max_pixels: int) -> Image.Image:
    """Decode a photo to upright RGB in the colours of sRGB, with its longest edge at most `size` pixels.

    Transparent pixels become white; of an animation the first frame is used. Metadata that cannot be read is ignored,
    and so is a missing end of the file if no more than a twentieth of the rows is missing.

    Raises:
        PhotoError: "not an image", "too many pixels" (width x height over `max_pixels`) or "damaged image".
        MemoryError: the limit of memory is reached.
    """
    if body.startswith(_PNG_START):
        body = _pixels_of_png(body)
    photo = _open(body, max_pixels)
    width, height = photo.size
    scale = min(1, size / max(width, height))
    target = max(1, round(width * scale)), max(1, round(height * scale))
    try:
        photo = _load(body, photo, target)
        small = _shrink(photo, target)
        for turn in _UPRIGHT.get(_orientation(photo), ()):
            small = small.transpose(turn)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise exceptions of any type on hostile bytes
        raise PhotoError("damaged image") from error
    return small


def _pixels_of_png(body: bytes) -> bytes:
    """The chunks of a PNG that its first frame needs; texts may be longer than Pillow accepts, or unpack to more."""
    kept, start = [_PNG_START], len(_PNG_START)
    while start + 8 <= len(body):
        kind, end = body[start + 4 : start + 8], start + 12 + int.from_bytes(body[start : start + 4])
        if kind == b"IEND":
            break
        if kind in _PNG_CHUNKS and not (kind == b"iCCP" and _unpacks_to_too_much(body[start + 8 : end - 4])):
            kept.append(body[start:end])
        start = end
    return b"".join([*kept, _PNG_END])


def _unpacks_to_too_much(chunk: bytes) -> bool:
    """Whether the profile in a PNG chunk (name, NUL, method, packed bytes) is too long or damaged."""
    unpacking = zlib.decompressobj()
    try:
        unpacking.decompress(chunk[chunk.index(b"\0") + 2 :], _MAX_PROFILE)
    except (ValueError, zlib.error):
        return True
    return bool(unpacking.unconsumed_tail)


def _open(body: bytes, max_pixels: int) -> Image.Image:
    """Read only the header, so that a photo with too many pixels is never decoded."""
    try:
        photo = Image.open(io.BytesIO(body), formats=FORMATS)
    except BOMBS:
        raise PhotoError("too many pixels") from None
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise PhotoError("not an image") from error
    if photo.width * photo.height > max_pixels:
        raise PhotoError("too many pixels")
    return photo


def _load(body: bytes, photo: Image.Image, target: tuple[int, int]) -> Image.Image:
    """Decode the pixels; a JPEG at the smallest scale of 1, 1/2, 1/4 and 1/8 that is no smaller than `target`."""
    photo.draft(None, target)
    try:
        photo.load()
    except OSError:
        if photo.format != "JPEG":
            raise
        photo = _load_without_end(body, target)
    return photo


def _load_without_end(body: bytes, target: tuple[int, int]) -> Image.Image:
    """Decode a JPEG that lacks its end.

    The decoder fills missing rows with grey. They change if arbitrary bytes follow the photo, and complete rows do not.

    Raises:
        OSError: more than a twentieth of the rows is missing.
    """
    photos = []
    for filler in (b"", b"\x55" * 1024):
        photo = Image.open(io.BytesIO(body.rstrip(b"\xff") + filler + _JPEG_END), formats=("JPEG",))
        photo.draft(None, target)
        photo.load()
        photos.append(photo)
    first, second = (photo.crop((0, 0, photo.width, photo.height * 19 // 20)) for photo in photos)
    if first.tobytes() != second.tobytes():
        raise OSError("the file is cut short")
    return photos[0]


def _shrink(photo: Image.Image, target: tuple[int, int]) -> Image.Image:
    """Convert to RGB and scale down.

    A large photo is converted in tiles, each reduced by a whole factor to no less than twice the target: a whole photo
    in RGB would need several times its memory.
    """
    to_rgb = _converter(photo)
    across, down = (max(1, edge // (2 * wanted)) for edge, wanted in zip(photo.size, target, strict=True))
    if across == down == 1:
        return to_rgb(photo).resize(target, Image.Resampling.BICUBIC)
    reduced = Image.new("RGB", (-(-photo.width // across), -(-photo.height // down)))
    step_x, step_y = across * max(1, _TILE // across), down * max(1, _TILE // down)
    for top in range(0, photo.height, step_y):
        for left in range(0, photo.width, step_x):
            box = left, top, min(left + step_x, photo.width), min(top + step_y, photo.height)
            reduced.paste(to_rgb(photo.crop(box)).reduce((across, down)), (left // across, top // down))
    whole = 0, 0, photo.width / across, photo.height / down
    return reduced.resize(target, Image.Resampling.BICUBIC, whole)


def _converter(photo: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """A function that converts a part of `photo` from its mode and colour profile to sRGB, on a white background."""
    profile = photo.info.get("icc_profile")
    is_deep = photo.mode.startswith(("I", "F"))  # grey of 16 or 32 bits
    scale = _grey_scale(photo) if is_deep else 1.0

    def to_rgb(part: Image.Image) -> Image.Image:
        if is_deep:
            colour = (part if part.mode == "F" else part.convert("I")).point(lambda value: value * scale).convert("L")
        else:
            wanted = "L" if part.mode in {"1", "L", "LA", "La"} else "CMYK" if part.mode == "CMYK" else "RGB"
            colour = part.convert(wanted)
        transform = _to_srgb(profile, colour.mode) if profile else None
        rgb = ImageCms.applyTransform(colour, transform) if transform else colour.convert("RGB")
        assert rgb is not None, "a new image"
        if is_deep or not part.has_transparency_data:
            return rgb
        white = Image.new("RGB", part.size, "white")
        white.paste(rgb, mask=part.convert("RGBA").getchannel("A"))
        return white

    return to_rgb


def _grey_scale(photo: Image.Image) -> float:
    """Factor from the values of a photo in mode I;16, I or F to 0 to 255: white is 1 (F only), 255, 65,535 or more."""
    if photo.mode.startswith("I;16"):
        return 1 / 256
    extrema: Any = photo.getextrema()
    highest = float(extrema[1])
    if photo.mode == "F" and highest <= 1:
        return 255.0
    return 1.0 if highest < 256 else 1 / 256 if highest < 65_536 else 256 / 2.0**32


@functools.lru_cache(maxsize=8)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from a colour profile to sRGB; None if the profile is sRGB, unreadable or for another mode."""
    try:
        if len(profile) > _MAX_PROFILE:
            return None
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if given.profile.xcolor_space.strip() != _COLOUR_SPACES[mode]:
            return None
        if "sRGB" in (given.profile.profile_description or ""):
            return None
        return ImageCms.buildTransform(given, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _orientation(photo: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 (upright) if EXIF is missing or damaged."""
    with suppress(Exception):  # Pillow's parsers raise any type; the picture is good without EXIF
        found = photo.getexif().get(ORIENTATION, 1)
        return found if found in _UPRIGHT else 1
    return 1


def is_placeholder(photo: Image.Image) -> bool:
    """Whether an RGB photo stands for a missing one: a few pixels, or a single white, grey or black.

    A single other colour is a swatch, as of a fabric or a paint.
    """
    bands: Any = photo.getextrema()
    if any(highest - lowest > 2 for lowest, highest in bands):
        return False
    values = [lowest for lowest, _ in bands]
    return max(photo.size) <= _TINY or max(values) - min(values) <= _GREY


def encode(photo: Image.Image) -> bytes:
    """JPEG bytes of an RGB photo; equal pixels give equal bytes."""
    plain = Image.new("RGB", photo.size)
    plain.paste(photo)  # without comments and profiles of the original
    buffer = io.BytesIO()
    plain.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _answer_requests(memory: int) -> None:
    """Decode the photos that standard input brings, within limits that the operating system enforces.

    `memory` is the most address space of this process in bytes; systems other than Linux may ignore it.
    """
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # each thread reserves address space
    Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is lower than `max_pixels` may be
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    _send(answers, READY)
    while head := requests.read(REQUEST.size):
        length, size, max_pixels = REQUEST.unpack(head)
        body = requests.read(length)
        signal.setitimer(signal.ITIMER_PROF, DECODE_S)  # its signal ends the process
        answer = _answer(body, size, max_pixels)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send(answers, answer)


def _answer(body: bytes, size: int, max_pixels: int) -> bytes:
    try:
        photo = normalise(body, size, max_pixels)
        if is_placeholder(photo):
            raise PhotoError("placeholder")
        data = encode(photo)
        return ANSWER.pack(True, photo.width, photo.height, len(data)) + data
    except PhotoError as error:
        reason = str(error).encode()
    except MemoryError:
        reason = TOO_LARGE.encode()
    return ANSWER.pack(False, 0, 0, len(reason)) + reason


def _send(answers: BinaryIO, data: bytes) -> None:
    answers.write(data)
    answers.flush()


if __name__ == "__main__":
    _answer_requests(int(sys.argv[1]))
