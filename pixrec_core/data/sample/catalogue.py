"""The sample's products: their texts, and their colours and patterns, which only the photos show."""

import random
import string
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import cycle, islice, product
from typing import Final

from pixrec_core.data.sample.words import BRANDS, CATEGORIES, SERIES

DAY_MS: Final = 86_400_000
START_MS: Final = int(datetime(2021, 3, 1, tzinfo=UTC).timestamp() * 1000)
SPAN_MS: Final = 730 * DAY_MS

COLOURS: Final = {
    "red": (205, 54, 62),
    "orange": (240, 132, 50),
    "yellow": (244, 201, 66),
    "green": (86, 160, 84),
    "teal": (38, 170, 172),
    "blue": (52, 96, 188),
    "purple": (132, 80, 168),
    "pink": (240, 146, 184),
}
PATTERNS: Final = ("plain", "stripes", "dots")

LATE_SHARE: Final = 0.1  # share of products released in the last 5 % of the time, so that some stay cold
POPULARITY_EXPONENT: Final = 0.8  # of Zipf's law
CODE_ALPHABET: Final = string.ascii_uppercase + string.digits


@dataclass(frozen=True)
class Product:
    """One product.

    Attributes:
        item: id, the `parent_asin` of its metadata.
        category: a key of `CATEGORIES`.
        colour: a key of `COLOURS`; no text mentions it.
        pattern: one of `PATTERNS`; no text mentions it.
        brand: one of `BRANDS`.
        title: brand, series, material and noun.
        photo: file name; may contain `+`, as real ones do.
        popularity: weight of the product where taste is equal.
        released: milliseconds since 1970; no purchase is earlier.
    """

    item: str
    category: str
    colour: str
    pattern: str
    brand: str
    title: str
    photo: str
    popularity: float
    released: int


def catalogue(count: int, seed: int) -> list[Product]:
    """Return `count` products, spread evenly over all categories, colours and patterns."""
    rng = random.Random(f"catalogue {seed}")
    kinds = list(product(CATEGORIES, COLOURS, PATTERNS))
    rng.shuffle(kinds)
    ranks = rng.sample(range(1, count + 1), count)
    late = set(rng.sample(range(count), round(LATE_SHARE * count)))
    releases = [START_MS + int(SPAN_MS * rng.uniform(0.95, 1.0)) if i in late else START_MS for i in range(count)]
    return [
        _product(rng, kind, rank, released)
        for kind, rank, released in zip(islice(cycle(kinds), count), ranks, releases, strict=True)
    ]


def _product(rng: random.Random, kind: tuple[str, str, str], rank: int, released: int) -> Product:
    category, colour, pattern = kind
    words = CATEGORIES[category]
    brand = rng.choice(BRANDS)
    title = f"{brand} {rng.choice(SERIES)} {rng.choice(words.materials)} {rng.choice(words.nouns)}"
    return Product(
        item="B0" + "".join(rng.choices(CODE_ALPHABET, k=8)),
        category=category,
        colour=colour,
        pattern=pattern,
        brand=brand,
        title=title,
        photo="71" + "".join(rng.choices(CODE_ALPHABET + "+", k=8)) + "L.jpg",
        popularity=rank**-POPULARITY_EXPONENT,
        released=released,
    )
