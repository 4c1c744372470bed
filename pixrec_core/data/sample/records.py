"""Amazon Reviews 2023 records of the sample: one metadata record per product, one review per purchase."""

import random
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from pixrec_core.data.sample.catalogue import Product
from pixrec_core.data.sample.shoppers import Purchase
from pixrec_core.data.sample.words import CATEGORIES, OPINIONS

Record = dict[str, Any]

STARS: Final = (1, 2, 3, 4, 5)
STAR_WEIGHTS: Final = (6, 4, 10, 22, 58)
PRICE_RANGE: Final = (8, 90)  # in the shop's currency
FROM_PRICE_SHARE: Final = 0.03
EMPTY_PRICE_SHARE: Final = 0.03
NULL_PRICE_SHARE: Final = 0.1
OTHER_ASIN_SHARE: Final = 0.15  # share of reviews whose `asin` is a variant of their item


def review_records(bought: Sequence[Purchase], seed: int) -> list[Record]:
    """Return one review per purchase, in the same order."""
    rng = random.Random(f"reviews {seed}")
    return [_review(rng, purchase) for purchase in bought]


def _review(rng: random.Random, purchase: Purchase) -> Record:
    stars = rng.choices(STARS, STAR_WEIGHTS)[0]
    title, text = OPINIONS[stars - 1]
    item = purchase.product.item
    return {
        "rating": float(stars),
        "title": title,
        "text": text,
        "images": [],
        "asin": f"{item[:-2]}V{rng.randint(1, 9)}" if rng.random() < OTHER_ASIN_SHARE else item,
        "parent_asin": item,
        "user_id": purchase.user,
        "timestamp": purchase.timestamp,
        "helpful_vote": int(rng.expovariate(1.0)),
        "verified_purchase": rng.random() < 0.9,
    }


def metadata_records(products: Sequence[Product], reviews: Sequence[Record], seed: int) -> list[Record]:
    """Return one record per product; its rating is the mean of its reviews."""
    rng = random.Random(f"metadata {seed}")
    ratings: dict[str, list[float]] = defaultdict(list)
    for review in reviews:
        ratings[review["parent_asin"]].append(review["rating"])
    return [_metadata(rng, product, ratings[product.item]) for product in products]


def _metadata(rng: random.Random, product: Product, ratings: Sequence[float]) -> Record:
    words = CATEGORIES[product.category]
    released = datetime.fromtimestamp(product.released / 1000, UTC)
    return {
        "main_category": words.main_category,
        "title": product.title,
        "average_rating": round(sum(ratings) / len(ratings), 1) if ratings else None,
        "rating_number": len(ratings),
        "features": rng.sample(words.features, rng.randint(1, 3)),
        "description": rng.sample(words.descriptions, rng.randint(0, 1)),
        "price": _price(rng),
        "images": [image(rng, product.photo, "MAIN")],
        "videos": [],
        "store": product.brand,
        "categories": list(words.path),
        "details": {"Date First Available": f"{released:%B} {released.day}, {released.year}"},
        "parent_asin": product.item,
        "bought_together": None,
    }


def image(rng: random.Random, file: str, variant: str) -> Record:
    """Return an entry of `images`; `hi_res` is sometimes null."""
    url = f"images/{file}"
    return {"thumb": url, "large": url, "variant": variant, "hi_res": None if rng.random() < 0.3 else url}


def _price(rng: random.Random) -> float | str | None:
    price = rng.randint(*PRICE_RANGE) + 0.99
    forms = (price, f"from {price}", "", None)
    shares = (1, FROM_PRICE_SHARE, EMPTY_PRICE_SHARE, NULL_PRICE_SHARE)
    return rng.choices(forms, shares)[0]
