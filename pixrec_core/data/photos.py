"""Decode photos of any format, hostile ones included, and encode them as small RGB JPEGs."""

import io
from typing import Final

import numpy as np
from PIL import Image, ImageOps

#: Formats of the web. Pillow has more decoders, some of which start other programs.
FORMATS: Final = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "TIFF")
QUALITY: Final = 90
ORIENTATION: Final = 0x0112  # EXIF tag
BOMBS: Final = (Image.DecompressionBombError, Image.DecompressionBombWarning)


class PhotoError(Exception):
    """A photo cannot be used; the message is the reason in a few words, the same for all failures of one kind."""


def normalise(body: bytes, size: int, max_pixels: int) -> Image.Image:
    """Decode a photo to upright RGB and shrink its longest edge to at most `size` pixels.

    Transparent pixels become white; of an animation the first frame is used.

    Raises:
        PhotoError: "not an image", "too many pixels" (width x height over `max_pixels`) or "damaged image".
    """
    photo = _open(body, max_pixels)
    try:
        photo.draft(None, _scaled(photo, 2 * size))  # decodes a JPEG at a reduced scale
        if photo.getexif().get(ORIENTATION, 1) != 1:
            photo = ImageOps.exif_transpose(photo)
        rgb = _rgb(photo)
    except Exception as error:  # decoders raise exceptions of any type on hostile bytes
        raise PhotoError("damaged image") from error
    rgb.thumbnail((size, size))
    return rgb


def _scaled(photo: Image.Image, edge: int) -> tuple[int, int]:
    """Width and height with the longest edge `edge`; `draft` reduces less for a box of other proportions."""
    longest = max(photo.size)
    return max(1, photo.width * edge // longest), max(1, photo.height * edge // longest)


def _open(body: bytes, max_pixels: int) -> Image.Image:
    """Read only the header, so that a photo with too many pixels is never decoded."""
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
    """Convert from any mode to RGB, on a white background."""
    if photo.has_transparency_data:
        layer = photo.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    if photo.mode.startswith("I"):  # 16-bit grey, whose values above 255 `convert` would clip
        eight_bits = np.asarray(photo, dtype=np.uint16) >> 8
        return Image.fromarray(eight_bits.astype(np.uint8)).convert("RGB")
    return photo.convert("RGB")


def encode(photo: Image.Image) -> bytes:
    """JPEG bytes of an RGB photo; equal pixels give equal bytes."""
    plain = Image.new("RGB", photo.size)
    plain.paste(photo)  # without comments and profiles of the original
    buffer = io.BytesIO()
    plain.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
