"""Outlines of the sample's products, as parts painted over one another.

Coordinates are fractions of the photo's edge, from the top left corner. Each silhouette has random proportions, so
that photos of one category differ.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

Point = tuple[float, float]
RGB = tuple[int, int, int]

CREAM: Final[RGB] = (247, 243, 234)
CHARCOAL: Final[RGB] = (66, 66, 72)
STONE: Final[RGB] = (172, 168, 163)


@dataclass(frozen=True)
class Part:
    """One part of a product.

    Attributes:
        outline: corners of a polygon, or a line's path where `width` is set.
        surface: `look` is colour and pattern, `colour` the colour alone, `shade` a darker colour;
            otherwise a fixed colour.
        width: width of a line with round ends, as a fraction of the photo's edge.
        round: whether it is lit like a cylinder.
        puff: width of the rounded border, as a fraction of the photo's edge.
    """

    outline: Sequence[Point]
    surface: Literal["look", "colour", "shade"] | RGB
    width: float | None = None
    round: bool = False
    puff: float = 0.02


@dataclass(frozen=True)
class Silhouette:
    """The drawing of a product.

    Attributes:
        parts: from back to front.
        foot: half the width of its shadow on the floor; None for a product that lies flat.
        floor: height of the floor, from the top.
    """

    parts: Sequence[Part]
    foot: float | None
    floor: float = 0.82


def arc(centre: Point, radius: Point, start: float = 0, end: float = 360, steps: int = 48) -> list[Point]:
    """Return points on an ellipse; angles are in degrees, clockwise from the right."""
    angles = (math.radians(start + (end - start) * i / steps) for i in range(steps + 1))
    return [(centre[0] + radius[0] * math.cos(a), centre[1] + radius[1] * math.sin(a)) for a in angles]


def smooth(points: Sequence[Point], closed: bool = True, steps: int = 10) -> list[Point]:
    """Return a Catmull-Rom curve through the points."""
    n = len(points)
    segments = n if closed else n - 1

    def at(i: int) -> Point:
        return points[i % n if closed else min(max(i, 0), n - 1)]

    curve = [_between(at(i - 1), at(i), at(i + 1), at(i + 2), s / steps) for i in range(segments) for s in range(steps)]
    return curve if closed else [*curve, points[-1]]


def _between(a: Point, b: Point, c: Point, d: Point, t: float) -> Point:
    x, y = (
        0.5 * (2 * q + (r - p) * t + (2 * p - 5 * q + 4 * r - s) * t**2 + (3 * q - p - 3 * r + s) * t**3)
        for p, q, r, s in zip(a, b, c, d, strict=True)
    )
    return x, y


def mirrored(right: Sequence[Point], axis: float = 0.5) -> list[Point]:
    """Return an outline from its right half, which runs from top to bottom."""
    return [*right, *((2 * axis - x, y) for x, y in reversed(right))]


def mug(rng: random.Random) -> Silhouette:
    """A mug with its handle to the right."""
    top, wide, foot, x = rng.uniform(0.27, 0.36), rng.uniform(0.20, 0.25), rng.uniform(0.15, 0.2), 0.45
    rim, middle = 0.045, (top + 0.82) / 2
    side = [(x + wide, top), (x + wide, middle), *arc((x + foot - 0.05, 0.76), (wide - foot + 0.05, 0.07), 0, 90, 12)]
    handle = arc((x + wide - 0.01, middle - 0.02), (rng.uniform(0.1, 0.14), (0.82 - top) * 0.3), -95, 95)
    return Silhouette(
        [
            Part(handle, "colour", width=rng.uniform(0.045, 0.06), puff=0.03),
            Part(mirrored(side, x), "look", round=True, puff=0.03),
            Part(arc((x, top), (wide, rim)), "colour", puff=0.01),
            Part(arc((x, top + 0.004), (wide - 0.018, rim - 0.01)), CREAM, round=True),
            Part(arc((x, top + 0.014), (wide - 0.04, rim - 0.018)), (92, 62, 46), puff=0.01),
        ],
        foot=wide + 0.03,
    )


def lamp(rng: random.Random) -> Silhouette:
    """A table lamp."""
    top, foot = rng.uniform(0.15, 0.24), rng.uniform(0.13, 0.18)
    brim, bottom = rng.uniform(0.25, 0.31), rng.uniform(0.48, 0.55)
    base = rng.choice((CREAM, CHARCOAL, STONE))
    shade = [*arc((0.5, 0.14), (top, 0.02), -90, 0, 8), *arc((0.5, bottom), (brim, 0.035), 0, 90, 16)]
    belly = rng.uniform(0.05, 0.14)
    stem = smooth([(0.52, bottom), (0.52, 0.6), (0.5 + belly, 0.7), (0.5 + foot * 0.7, 0.82)], closed=False)
    return Silhouette(
        [
            Part(mirrored(stem), base, round=True, puff=0.03),
            Part(mirrored(arc((0.5, 0.825), (foot, 0.022), -90, 90, 24)), base, round=True),
            Part([(0.5, 0.105), (0.5, 0.14)], CHARCOAL, width=0.02),
            Part(mirrored(shade), "look", round=True, puff=0.03),
            Part(arc((0.5, bottom), (brim, 0.035), 3, 177), "shade", width=0.012),
            Part(arc((0.5, 0.14), (top, 0.02)), "shade"),
        ],
        foot=foot + 0.05,
        floor=0.84,
    )


def backpack(rng: random.Random) -> Silhouette:
    """A backpack from the front."""
    wide, top, pocket = rng.uniform(0.22, 0.26), rng.uniform(0.18, 0.24), rng.uniform(0.54, 0.6)
    trim = rng.choice((CHARCOAL, STONE))
    body = mirrored(
        smooth(
            [(0.5, top), (0.5 + wide * 0.75, top + 0.06), (0.5 + wide, 0.45), (0.5 + wide, 0.76), (0.5, 0.84)],
            closed=False,
        )
    )
    front = mirrored(
        smooth([(0.5, pocket), (0.48 + wide * 0.8, pocket + 0.01), (0.5 + wide * 0.78, 0.77), (0.5, 0.8)], closed=False)
    )
    zipper = arc((0.5, 0.46), (wide * 0.82, 0.46 - top - 0.07), 190, 350)
    return Silhouette(
        [
            Part(arc((0.5, top + 0.01), (0.07, 0.07), 180, 360), trim, width=0.03),
            Part(arc((0.52 - wide, 0.6), (0.06, 0.19), 100, 260), trim, width=0.035),
            Part(arc((0.48 + wide, 0.6), (0.06, 0.19), -80, 80), trim, width=0.035),
            Part(body, "look", round=True, puff=0.06),
            Part(zipper, trim, width=0.012, puff=0.005),
            Part(front, "colour", puff=0.04),
            Part([(0.52 - wide * 0.75, pocket + 0.035), (0.48 + wide * 0.75, pocket + 0.035)], trim, width=0.012),
            Part([(0.5, pocket + 0.035), (0.5, pocket + 0.085)], trim, width=0.018),
        ],
        foot=wide + 0.04,
        floor=0.83,
    )


def sneaker(rng: random.Random) -> Silhouette:
    """A low sneaker from the side, toe to the left."""
    heel, tongue, sole = rng.uniform(0.38, 0.44), rng.uniform(0.30, 0.36), rng.uniform(0.06, 0.09)
    ground = 0.76
    floor = ground - sole
    upper = smooth(
        [
            (0.1, floor - 0.02), (0.14, floor - 0.1), (0.28, floor - 0.14), (0.42, floor - 0.22), (0.54, tongue),
            (0.59, tongue + 0.02), (0.7, heel + 0.06), (0.82, heel), (0.88, heel + 0.06), (0.89, floor - 0.04),
            (0.88, floor + 0.02), (0.5, floor + 0.02), (0.14, floor + 0.02),
        ]
    )  # fmt: skip
    bottom = smooth(
        [(0.07, floor - 0.01), (0.1, ground - 0.01), (0.5, ground), (0.88, ground), (0.92, floor), (0.5, floor + 0.01)]
    )
    laces = [
        Part([(0.34 + 0.065 * i, floor - 0.155 - 0.05 * i), (0.43 + 0.06 * i, floor - 0.115 - 0.045 * i)], CREAM, 0.018)
        for i in range(4)
    ]
    return Silhouette(
        [
            Part(
                smooth([(0.49, tongue + 0.04), (0.52, tongue - 0.045), (0.585, tongue - 0.035), (0.6, tongue + 0.06)]),
                "shade",
            ),
            Part(upper, "look", puff=0.06),
            Part(
                smooth([(0.58, tongue + 0.015), (0.69, heel + 0.06), (0.83, heel + 0.005)], closed=False), "shade", 0.03
            ),
            Part(smooth([(0.1, floor), (0.14, floor - 0.1), (0.24, floor - 0.13), (0.27, floor)]), CREAM, puff=0.04),
            *laces,
            Part(bottom, CREAM, puff=0.03),
            Part([(0.1, floor + sole * 0.45), (0.89, floor + sole * 0.45)], "colour", width=0.012),
        ],
        foot=0.42,
        floor=ground,
    )


def cushion(rng: random.Random) -> Silhouette:
    """A cushion that stands on one edge, a little turned."""
    half, dent, turn = rng.uniform(0.29, 0.34), rng.uniform(0.02, 0.035), math.radians(rng.uniform(-5, 5))
    corners = [(-1, -1), (0, -1), (1, -1), (1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0)]
    flat = [(x * (half - dent * (y == 0)), y * (half - dent * (x == 0))) for x, y in corners]
    edge = smooth(
        [
            (0.5 + x * math.cos(turn) - y * math.sin(turn), 0.52 + x * math.sin(turn) + y * math.cos(turn))
            for x, y in flat
        ]
    )
    return Silhouette(
        [
            Part(edge, "look", puff=0.13),
            Part([*edge, edge[0]], rng.choice(("shade", CREAM)), width=0.014),
        ],
        foot=half + 0.02,
        floor=0.52 + half - 0.02,
    )


def t_shirt(rng: random.Random) -> Silhouette:
    """A T-shirt laid flat."""
    chest, hem, sleeve = rng.uniform(0.2, 0.23), rng.uniform(0.82, 0.88), rng.uniform(0.4, 0.46)
    side = smooth([(0.5 + chest, 0.42), (0.49 + chest, 0.6), (0.505 + chest, hem)], closed=False, steps=6)
    neck = arc((0.5, 0.17), (0.09, rng.uniform(0.06, 0.09)), 90, 0, 12)
    cuff = [(0.88, sleeve), (0.79, sleeve + 0.06)]
    right = [*neck, (0.7, 0.22), *cuff, *side, (0.5, hem + 0.012)]
    return Silhouette(
        [
            Part(mirrored(arc((0.5, 0.165), (0.085, 0.02), -90, 90, 12)), "shade"),
            Part(mirrored(right), "look", puff=0.05),
            Part(sorted(mirrored(neck)), "colour", width=0.026, puff=0.012),
            Part([(0.5 - chest, hem - 0.025), (0.5 + chest, hem - 0.025)], "shade", width=0.005),
        ],
        foot=None,
    )


SILHOUETTES: Final[dict[str, Callable[[random.Random], Silhouette]]] = {
    "mug": mug,
    "lamp": lamp,
    "backpack": backpack,
    "sneaker": sneaker,
    "cushion": cushion,
    "t-shirt": t_shirt,
}
