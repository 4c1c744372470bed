"""Column names and schemas of all tables.

An *interaction* is one user with one item at one time. A *sequence* is a user's items in order: the last one is the
*target*, those before it are the *history*.
"""

import unicodedata
from typing import Final

import polars as pl
from polars.datatypes import DataTypeClass

USER: Final = "user"
ITEM: Final = "item"
TIMESTAMP: Final = "timestamp"  # milliseconds since 1970-01-01 UTC
DAY_MS: Final = 86_400_000
RATING: Final = "rating"  # stars; 0.0 occurs in real data
POSITION: Final = "position"  # line number in the reviews file, from 1; breaks ties of time
TITLE: Final = "title"
MAIN_CATEGORY: Final = "main_category"
CATEGORIES: Final = "categories"  # broadest first
STORE: Final = "store"  # brand or shop
FEATURES: Final = "features"
DETAILS: Final = "details"  # "key: value"
DESCRIPTION: Final = "description"
PRICE: Final = "price"  # in the shop's currency; null where unset
IN_STOCK: Final = "in_stock"  # whether it can be bought; null where unknown
IMAGE_URL: Final = "image_url"  # http(s) URL, or path of a local photo relative to the photo folder; null if none
OTHER_IMAGE_URLS: Final = "other_image_urls"  # tried in this order if the photo of `image_url` cannot be had
HAS_IMAGE: Final = "has_image"
TRAIN_COUNT: Final = "train_count"  # occurrences in training sequences; 0 is a cold item
SPLIT: Final = "split"
ITEMS: Final = "items"
ORDINAL: Final = "ordinal"  # position in the user's sequence, from 1
TIMESTAMPS: Final = "timestamps"  # of each of `items`; items with equal ones keep the order of the file
TIED: Final = "tied"  # whether another item of the sequence has the target's timestamp: then the file order decided
RANK: Final = "rank"  # from 1
SCORE: Final = "score"
METHOD: Final = "method"

TRAIN: Final = "train"
VALIDATION: Final = "validation"
TEST: Final = "test"
SPLITS: Final = (TRAIN, VALIDATION, TEST)
MIN_TESTED_LENGTH: Final = 3  # leave-one-out: users with fewer interactions are in no split but train
HISTORY_ONLY: Final = "history"  # split of an interaction before the cuts that is in no training sequence
START: Final = "start"  # first timestamp of a held-out split


def _schema(columns: dict[str, pl.DataType | DataTypeClass]) -> pl.Schema:
    """`pl.Schema` with a parameter type by which mypy accepts types and their instances in one dict."""
    return pl.Schema(columns)


#: The catalogue: one row per item. Average rating and rating count of the metadata are left out: they were counted
#: after the split, so they leak the future.
ITEM_SCHEMA: Final = _schema(
    {
        ITEM: pl.String,
        TITLE: pl.String,
        MAIN_CATEGORY: pl.String,
        CATEGORIES: pl.List(pl.String),
        STORE: pl.String,
        FEATURES: pl.List(pl.String),
        DETAILS: pl.List(pl.String),
        DESCRIPTION: pl.List(pl.String),
        PRICE: pl.Float64,
        IN_STOCK: pl.Boolean,
        IMAGE_URL: pl.String,
        OTHER_IMAGE_URLS: pl.List(pl.String),
    }
)

#: One row per purchase or review, in (user, timestamp, position) order.
INTERACTION_SCHEMA: Final = _schema(
    {USER: pl.String, ITEM: pl.String, TIMESTAMP: pl.Int64, RATING: pl.Float64, POSITION: pl.Int64}
)

#: One row per rejected row: file, line, reason, and the first 200 characters.
QUARANTINE_SCHEMA: Final = _schema({"file": pl.String, "line": pl.Int64, "reason": pl.String, "raw": pl.String})

#: One row per item with an `image_url`: the outcome of its photo, which may be that of one of `other_image_urls`.
IMAGE_SCHEMA: Final = _schema(
    {
        ITEM: pl.String,
        "url": pl.String,
        "status": pl.String,  # "ok" or "failed"
        "reason": pl.String,  # of a failure; else null
        "sha256": pl.String,  # of the stored file
        "width": pl.Int32,  # pixels, as stored
        "height": pl.Int32,
        "bytes": pl.Int64,  # of the stored file
        "attempts": pl.Int32,
        # `url`, then those of `other_image_urls` that were tried; the last one gave the photo. Null in older manifests.
        "tried_urls": pl.List(pl.String),
    }
)

#: Table `items` of sequences.duckdb: the items that rankings contain.
CATALOGUE_SCHEMA: Final = _schema(
    {name: kind for name, kind in ITEM_SCHEMA.items() if name != OTHER_IMAGE_URLS}
    | {HAS_IMAGE: pl.Boolean, TRAIN_COUNT: pl.Int64}
)

#: Table `interactions` of sequences.duckdb: those that passed the filters, in (user, ordinal) order.
FILTERED_SCHEMA: Final = _schema({**INTERACTION_SCHEMA, ORDINAL: pl.Int64, SPLIT: pl.String})

#: Table `sequences` of sequences.duckdb. In split `train` every item except the first is a target, and `tied` is false;
#: in `validation` and `test` the last item is the target.
SEQUENCE_SCHEMA: Final = _schema(
    {SPLIT: pl.String, USER: pl.String, ITEMS: pl.List(pl.String), TIMESTAMPS: pl.List(pl.Int64), TIED: pl.Boolean}
)

#: Table `cuts` of sequences.duckdb: when validation and test start, for all users; empty if the last two items of each
#: user are held out.
CUT_SCHEMA: Final = _schema({SPLIT: pl.String, START: pl.Int64})

#: A ranking of the whole catalogue, seen items included, by any method. Each user has `depth` items plus as many as the
#: history has distinct ones, so that `depth` remain after the seen ones are removed.
RANKING_SCHEMA: Final = _schema({USER: pl.String, RANK: pl.Int32, ITEM: pl.String, SCORE: pl.Float32})

#: Rank of each test target by each method; null beyond the ranking's depth. A ranking by a variant's language model is
#: the method `<variant>/<ranker>`, with the users who were sampled for it.
OUTCOME_SCHEMA: Final = _schema({METHOD: pl.String, USER: pl.String, ITEM: pl.String, RANK: pl.Int32})

#: Blanks, line ends and characters without width, which sources remove around ids.
BLANKS: Final = "".join(
    map(chr, (*range(9, 14), 32, 0xA0, 0xAD, *range(0x2000, 0x2010), 0x202F, 0x205F, 0x2060, 0x3000, 0xFEFF))
)


def clean_id(text: str) -> str:
    """Return an id as the tables have it: without the blanks around it, in the Unicode form NFC."""
    return unicodedata.normalize("NFC", text).strip(BLANKS)
