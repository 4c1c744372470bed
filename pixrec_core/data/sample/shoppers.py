"""The sample's shoppers, whose purchases follow taste in category and look, recency, repeats and popularity."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pixrec_core.data.sample.catalogue import COLOURS, PATTERNS, SPAN_MS, START_MS, Product
from pixrec_core.data.sample.words import CATEGORIES

MIN_PURCHASES: Final = 5
MAX_PURCHASES: Final = 14
REPEAT: Final = 0.04  # probability that the next product repeats the last one
TIE: Final = 0.12  # probability that a purchase shares its time with the one before
DRIFT: Final = 0.1  # probability that the shopper's taste becomes the look of the last purchase

# Factors on the weight of a product that matches.
SAME_CATEGORY: Final = 5.0  # the category of the last purchase
FAVOURITE_CATEGORY: Final = 25.0
OWN_COLOUR: Final = 200.0
OWN_PATTERN: Final = 60.0


@dataclass(frozen=True)
class Purchase:
    """One purchase; `timestamp` is in milliseconds since 1970."""

    user: str
    product: Product
    timestamp: int


class Shelf:
    """The catalogue as arrays of one entry per product."""

    def __init__(self, products: Sequence[Product]) -> None:
        self.products = products
        self.category = np.array([p.category for p in products])
        self.colour = np.array([p.colour for p in products])
        self.pattern = np.array([p.pattern for p in products])
        self.popularity = np.array([p.popularity for p in products])
        self.released = np.array([p.released for p in products])

    def draw(self, rng: random.Random, weights: NDArray[np.float64]) -> int:
        """Return the index of one product, drawn in proportion to its weight."""
        heights = np.cumsum(weights)
        return int(np.searchsorted(heights, rng.random() * heights[-1], side="right"))


class Shopper:
    """The taste and the purchases of one shopper."""

    def __init__(self, rng: random.Random, shelf: Shelf) -> None:
        self.rng, self.shelf = rng, shelf
        self.favourites = rng.sample(list(CATEGORIES), 2)
        self.colour = rng.choice(list(COLOURS))
        self.pattern = rng.choice(PATTERNS)
        self.bought: list[int] = []

    def buy(self, timestamp: int) -> Product:
        """Return the next product; only an immediate repeat buys a product twice."""
        if self.bought and self.rng.random() < REPEAT:
            choice = self.bought[-1]
        else:
            choice = self.shelf.draw(self.rng, self._weights(timestamp))
        self.bought.append(choice)
        product = self.shelf.products[choice]
        if self.rng.random() < DRIFT:
            self.colour, self.pattern = product.colour, product.pattern
        return product

    def _weights(self, timestamp: int) -> NDArray[np.float64]:
        shelf = self.shelf
        weights = shelf.popularity * (shelf.released <= timestamp)
        weights[shelf.colour == self.colour] *= OWN_COLOUR
        weights[shelf.pattern == self.pattern] *= OWN_PATTERN
        for favourite in self.favourites:
            weights[shelf.category == favourite] *= FAVOURITE_CATEGORY
        if self.bought:
            weights[shelf.category == shelf.category[self.bought[-1]]] *= SAME_CATEGORY
            weights[self.bought] = 0
        return weights


def purchases(products: Sequence[Product], users: int, seed: int) -> Iterator[Purchase]:
    """Yield the purchases of `users` shoppers, shopper by shopper, each in order of time."""
    rng = random.Random(f"shoppers {seed}")
    shelf = Shelf(products)
    for _ in range(users):
        user = "A" + "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", k=27))
        shopper = Shopper(rng, shelf)
        for timestamp in _times(rng):
            yield Purchase(user, shopper.buy(timestamp), timestamp)


def _times(rng: random.Random) -> list[int]:
    """Return the times of one shopper's purchases, ascending, some of them tied."""
    begin, end = rng.uniform(0.0, 0.9), rng.uniform(0.9, 1.0)
    before = sorted(rng.uniform(begin, end) for _ in range(rng.randint(MIN_PURCHASES, MAX_PURCHASES) - 1))
    times = [START_MS + int(SPAN_MS * share) for share in (*before, end)]
    for i in range(1, len(times)):
        if rng.random() < TIE:
            times[i] = times[i - 1]
    return times
