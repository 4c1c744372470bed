"""Product photos of the sample, drawn on a light studio background at three times their size and then reduced."""

import random
from collections.abc import Sequence
from typing import Final

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from pixrec_core.data.sample.catalogue import COLOURS, Product
from pixrec_core.data.sample.silhouettes import CREAM, RGB, SILHOUETTES, Part, Point, Silhouette

SIZE: Final = 160  # pixels, edge of a photo
OVERSAMPLING: Final = 3
EDGE: Final = SIZE * OVERSAMPLING
NEUTRAL: Final = 128  # the grey that hard light leaves unchanged
#: Grey values across a cylinder, left to right, lit from the upper left.
CYLINDER: Final = bytes((92, 122, 142, 152, 148, 138, 128, 116, 102, 88, 76))


def draw(product: Product) -> Image.Image:
    """Return the product's photo, `SIZE` x `SIZE` pixels, RGB."""
    rng = random.Random(f"photo {product.item}")
    colour = _jittered(rng, COLOURS[product.colour])
    surfaces = {
        "look": _cloth(rng, colour, product.pattern),
        "colour": Image.new("RGB", (EDGE, EDGE), colour),
        "shade": Image.new("RGB", (EDGE, EDGE), tuple(int(c * 0.72) for c in colour)),
    }
    silhouette = SILHOUETTES[product.category](rng)
    photo = _studio(rng)
    _cast_shadow(photo, silhouette)
    for part in silhouette.parts:
        surface = part.surface
        image = surfaces[surface] if isinstance(surface, str) else Image.new("RGB", (EDGE, EDGE), surface)
        _paint(photo, part, image)
    return photo.reduce(OVERSAMPLING)


def _jittered(rng: random.Random, colour: RGB) -> RGB:
    """Return a colour close to `colour`, since real dye lots differ."""
    red, green, blue = (min(255, max(0, c + rng.randint(-9, 9))) for c in colour)
    return red, green, blue


def _cloth(rng: random.Random, colour: RGB, pattern: str) -> Image.Image:
    """Return an image filled with colour and pattern."""
    cloth = Image.new("RGB", (EDGE, EDGE), colour)
    pen = ImageDraw.Draw(cloth)
    if pattern == "stripes":
        pitch = rng.uniform(0.085, 0.11) * EDGE
        for i in range(int(EDGE / pitch) + 1):
            pen.rectangle((0, i * pitch, EDGE, (i + 0.42) * pitch), CREAM)
    elif pattern == "dots":
        pitch = rng.uniform(0.085, 0.105) * EDGE
        for row in range(int(EDGE / pitch) + 2):
            for column in range(int(EDGE / pitch) + 2):
                pen.circle(((column + row % 2 / 2) * pitch, row * pitch * 0.87), 0.25 * pitch, CREAM)
    return cloth


def _studio(rng: random.Random) -> Image.Image:
    """Return the background: a wall that fades into the floor."""
    warmth = rng.randint(-4, 4)
    wall, floor = (248 + warmth, 248, 248 - warmth), (226 + warmth, 226, 226 - warmth)
    fade = Image.linear_gradient("L").resize((EDGE, EDGE))
    return Image.composite(Image.new("RGB", (EDGE, EDGE), floor), Image.new("RGB", (EDGE, EDGE), wall), fade)


def _cast_shadow(photo: Image.Image, silhouette: Silhouette) -> None:
    """Paint a soft shadow on the floor, or around a product that lies flat."""
    shadow = Image.new("L", (SIZE, SIZE))
    pen = ImageDraw.Draw(shadow)
    if silhouette.foot is None:
        for part in silhouette.parts:
            pen.polygon(_scaled(part.outline, SIZE, shift=(0.012, 0.02)), 110)
        shadow = shadow.filter(ImageFilter.GaussianBlur(4))
    else:
        for share, dark, height in ((1.0, 70, 0.04), (0.82, 150, 0.018)):
            reach, middle = silhouette.foot * share, 0.52
            box = (middle - reach, silhouette.floor - height, middle + reach, silhouette.floor + height)
            pen.ellipse(tuple(SIZE * v for v in box), dark)
        shadow = shadow.filter(ImageFilter.GaussianBlur(3.5))
    photo.paste((70, 64, 60), mask=shadow.resize((EDGE, EDGE)))


def _paint(photo: Image.Image, part: Part, surface: Image.Image) -> None:
    """Paint one lit part over the photo; only its bounding box is computed."""
    mask = _mask(part)
    box = mask.getbbox()
    assert box is not None, "a part lies outside the photo"
    mask = mask.crop(box)
    lit = ImageChops.hard_light(surface.crop(box), Image.merge("RGB", [_light(part, mask)] * 3))
    photo.paste(lit, box, mask)


def _mask(part: Part) -> Image.Image:
    mask = Image.new("L", (EDGE, EDGE))
    pen = ImageDraw.Draw(mask)
    points = _scaled(part.outline, EDGE)
    if part.width is None:
        pen.polygon(points, 255)
    else:
        pen.line(points, 255, round(part.width * EDGE))
        for point in points:  # round ends and joints; the joints of `line` are ragged
            pen.circle(point, part.width * EDGE / 2, 255)
    return mask


def _light(part: Part, mask: Image.Image) -> Image.Image:
    """Return grey values for hard light: edges that face the upper left are bright, the others dark.

    Computed at a third of the size, which is enough for soft light.
    """
    size = (max(1, mask.width // 3), max(1, mask.height // 3))
    margin = round(part.puff * SIZE) + 1
    small = Image.new("L", (size[0] + 2 * margin, size[1] + 2 * margin))
    small.paste(mask.resize(size), (margin, margin))
    soft = small.filter(ImageFilter.GaussianBlur(margin * 0.8))
    shift = max(1, margin // 2)
    slope = ImageChops.subtract(
        ImageChops.offset(soft, -shift, -shift), ImageChops.offset(soft, shift, shift), scale=2.6, offset=NEUTRAL
    )
    light = slope.crop((margin, margin, margin + size[0], margin + size[1]))
    if part.round:
        cylinder = Image.frombytes("L", (len(CYLINDER), 1), CYLINDER).resize(size, Image.Resampling.BICUBIC)
        light = ImageChops.add(light, cylinder, offset=-NEUTRAL)
    return light.resize(mask.size, Image.Resampling.BILINEAR)


def _scaled(points: Sequence[Point], edge: int, shift: Point = (0, 0)) -> list[Point]:
    return [((x + shift[0]) * edge, (y + shift[1]) * edge) for x, y in points]
