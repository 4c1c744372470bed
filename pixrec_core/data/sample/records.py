"""Amazon Reviews 2023 records of the sample, and the faults of real data in their lines.

There is one metadata record per product and one review per purchase.
"""

import html
import json
import random
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final

from pixrec_core.data.sample.catalogue import Product
from pixrec_core.data.sample.shoppers import Purchase
from pixrec_core.data.sample.words import CATEGORIES, OPINIONS

Record = dict[str, Any]

DEAD_PHOTO: Final = "gone.jpg"  # no such file exists
MALFORMED_PER: Final = 250  # lines per malformed line: 0.4 %, below the default `max_bad_share`
MAX_MALFORMED: Final = 2
DUPLICATE_SHARE: Final = 0.005
UNKNOWN_SHARE: Final = 0.003
ZERO_RATING_SHARE: Final = 0.002
ITEM_DIRT_SHARE: Final = 0.01  # share of items per kind of fault
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


def soiled_metadata(records: list[Record], seed: int) -> list[bytes]:
    """Return metadata lines with faults; changes `records`."""
    rng = random.Random(f"metadata dirt {seed}")
    deck = iter(rng.sample(records, len(records)))
    few = max(1, round(ITEM_DIRT_SHARE * len(records)))
    for record in islice(deck, few):
        record["images"] = []
    for record in islice(deck, few):
        record["images"][0]["variant"] = "PT01"
    for record in islice(deck, few):
        record["title"] = f"<b>{html.escape(record['title'])}</b> &ndash; New<br/>"
    for record in islice(deck, few):
        record["categories"], record["details"] = [], {}
    for record in islice(deck, 1):
        record["images"] = [image(rng, DEAD_PHOTO, "MAIN")]
    for record in islice(deck, few):
        records.insert(rng.randrange(len(records)), record)
    return _lines(records, rng)


def soiled_reviews(records: list[Record], seed: int) -> list[bytes]:
    """Return review lines with faults; a duplicate follows its original."""
    rng = random.Random(f"review dirt {seed}")
    zero, twice, unknown = (
        set(rng.sample(range(len(records)), max(1, round(share * len(records)))))
        for share in (ZERO_RATING_SHARE, DUPLICATE_SHARE, UNKNOWN_SHARE)
    )
    soiled = []
    for i, record in enumerate(records):
        soiled.append(record | {"rating": 0.0} if i in zero else record)
        if i in twice:
            soiled.append(soiled[-1])
        if i in unknown:
            soiled.append(record | {"parent_asin": f"B0GONE{i % 10_000:04}"})
    return _lines(soiled, rng)


def _lines(records: list[Record], rng: random.Random) -> list[bytes]:
    """Return JSON lines; a large file has one truncated line and one with broken UTF-8."""
    lines = [json.dumps(record).encode() for record in records]
    whole = rng.choice(lines)
    malformed = (whole[: len(whole) // 2], whole[:20] + b"\xff\xfe" + whole[20:])
    for line in malformed[: min(MAX_MALFORMED, len(lines) // MALFORMED_PER)]:
        lines.insert(rng.randrange(len(lines)), line)
    return lines
