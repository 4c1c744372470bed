"""Bytes of any picture format and of any intent -> one small RGB JPEG."""

import io
from typing import Final

import numpy as np
from PIL import Image, ImageOps

#: What the web shows. Pillow knows more formats, and some of those start other programs.
FORMATS: Final = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "TIFF")
QUALITY: Final = 90
ORIENTATION: Final = 0x0112  # EXIF tag
BOMBS: Final = (Image.DecompressionBombError, Image.DecompressionBombWarning)


class PhotoError(Exception):
    """Bytes are no photo that can be used; the message is the reason in a few words."""


def normalise(body: bytes, size: int, max_pixels: int) -> Image.Image:
    """Decode a photo to RGB, upright, its longest edge at most `size` pixels; it is never enlarged.

    Transparency becomes white, an animation its first frame.

    Raises:
        PhotoError: "not an image", "too many pixels" (width x height over `max_pixels`) or "damaged image".
    """
    photo = _open(body, max_pixels)
    try:
        photo.draft(None, _scaled(photo, 2 * size))  # a JPEG is decoded at about the scale that is needed
        if photo.getexif().get(ORIENTATION, 1) != 1:
            photo = ImageOps.exif_transpose(photo)
        rgb = _rgb(photo)
    except Exception as error:  # hostile bytes make decoders raise whatever they like
        raise PhotoError("damaged image") from error
    rgb.thumbnail((size, size))
    return rgb


def _scaled(photo: Image.Image, edge: int) -> tuple[int, int]:
    """Width and height at which the longest edge is `edge`; a box of other proportions would hold `draft` back."""
    longest = max(photo.size)
    return max(1, photo.width * edge // longest), max(1, photo.height * edge // longest)


def _open(body: bytes, max_pixels: int) -> Image.Image:
    """Read the header alone, so that the pixels are counted before there are any."""
    try:
        photo = Image.open(io.BytesIO(body), formats=FORMATS)
    except BOMBS:
        raise PhotoError("too many pixels") from None
    except Exception as error:  # as above
        raise PhotoError("not an image") from error
    if photo.width * photo.height > max_pixels:
        raise PhotoError("too many pixels")
    return photo


def _rgb(photo: Image.Image) -> Image.Image:
    """Pixels of any mode as RGB, on white where they are transparent."""
    if photo.has_transparency_data:
        layer = photo.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    if photo.mode.startswith("I"):  # 16 bits of grey, which `convert` would clip to the darkest 256th
        eight_bits = np.asarray(photo, dtype=np.uint16) >> 8
        return Image.fromarray(eight_bits.astype(np.uint8)).convert("RGB")
    return photo.convert("RGB")


def encode(photo: Image.Image) -> bytes:
    """JPEG bytes of an RGB photo; the same pixels give the same bytes."""
    plain = Image.new("RGB", photo.size)
    plain.paste(photo)  # without the comments and profiles that came along
    buffer = io.BytesIO()
    plain.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
