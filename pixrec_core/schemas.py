"""Every column name and table schema, once.

One vocabulary: an *item* is keyed by `parent_asin`; an *interaction* is one user with one item at
one time; a *sequence* is a user's items in order; its last item is the *target*, what stands
before it the *history*.
"""

from typing import Final

import polars as pl
from polars.datatypes import DataTypeClass

USER: Final = "user"
ITEM: Final = "item"
TIMESTAMP: Final = "timestamp"  # milliseconds since 1970-01-01 UTC
RATING: Final = "rating"  # stars; 0.0 occurs in real data
POSITION: Final = "position"  # line number in the reviews file, from 1; breaks ties of time
TITLE: Final = "title"
MAIN_CATEGORY: Final = "main_category"
CATEGORIES: Final = "categories"  # from the widest to the narrowest
STORE: Final = "store"  # brand or shop
FEATURES: Final = "features"
DESCRIPTION: Final = "description"
PRICE: Final = "price"  # in the shop's currency; null where unset
IMAGE_URL: Final = "image_url"  # null where the item has none
HAS_IMAGE: Final = "has_image"
TRAIN_COUNT: Final = "train_count"  # occurrences in training sequences; 0 is a cold item
SPLIT: Final = "split"
ITEMS: Final = "items"
PLACE: Final = "place"  # in the user's sequence, from 1
MOMENTS: Final = "moments"  # `timestamp` of each of `items`; items of one moment are tied, their order is the file's
TIED: Final = "tied"  # whether the target shares its time with a neighbour, so that the file's order chose it
RANK: Final = "rank"  # from 1
SCORE: Final = "score"
METHOD: Final = "method"

TRAIN: Final = "train"
VALIDATION: Final = "validation"
TEST: Final = "test"
SPLITS: Final = (TRAIN, VALIDATION, TEST)
HISTORY_ONLY: Final = "history"  # split of an interaction that no training sequence has, though it lies before the cuts
START: Final = "start"  # first instant of a held-out split, in the unit of `timestamp`


def _schema(columns: dict[str, pl.DataType | DataTypeClass]) -> pl.Schema:
    """A schema; the parameter's type lets mypy accept types and their instances side by side."""
    return pl.Schema(columns)


#: The catalogue: one row an item. Average rating and rating count of the metadata are left out:
#: they were counted after the split point, so they leak the future.
ITEM_SCHEMA: Final = _schema(
    {
        ITEM: pl.String,
        TITLE: pl.String,
        MAIN_CATEGORY: pl.String,
        CATEGORIES: pl.List(pl.String),
        STORE: pl.String,
        FEATURES: pl.List(pl.String),
        DESCRIPTION: pl.List(pl.String),
        PRICE: pl.Float64,
        IMAGE_URL: pl.String,
    }
)

#: One row a purchase or review, in (user, timestamp, position) order.
INTERACTION_SCHEMA: Final = _schema(
    {USER: pl.String, ITEM: pl.String, TIMESTAMP: pl.Int64, RATING: pl.Float64, POSITION: pl.Int64}
)

#: One row a bad line: which file and line, why, and its first 200 characters.
QUARANTINE_SCHEMA: Final = _schema({"file": pl.String, "line": pl.Int64, "reason": pl.String, "raw": pl.String})

#: One row an item that has a URL: what came of its download.
IMAGE_SCHEMA: Final = _schema(
    {
        ITEM: pl.String,
        "url": pl.String,
        "status": pl.String,  # "ok" or "failed"
        "reason": pl.String,  # why it failed; null where it did not
        "sha256": pl.String,  # of the stored file
        "width": pl.Int32,  # pixels, as stored
        "height": pl.Int32,
        "bytes": pl.Int64,  # of the stored file
        "attempts": pl.Int32,
    }
)

#: Table `items` of sequences.duckdb: the catalogue that rankings choose from.
CATALOGUE_SCHEMA: Final = _schema({**ITEM_SCHEMA, HAS_IMAGE: pl.Boolean, TRAIN_COUNT: pl.Int64})

#: Table `interactions` of sequences.duckdb: those that were kept, in (user, place) order.
KEPT_SCHEMA: Final = _schema({**INTERACTION_SCHEMA, PLACE: pl.Int64, SPLIT: pl.String})

#: Table `sequences` of sequences.duckdb. In split `train` every item but the first is a target, and
#: `tied` is false; in `validation` and `test` the last item is the target.
SEQUENCE_SCHEMA: Final = _schema(
    {SPLIT: pl.String, USER: pl.String, ITEMS: pl.List(pl.String), MOMENTS: pl.List(pl.Int64), TIED: pl.Boolean}
)

#: Table `cuts` of sequences.duckdb: where validation and test start, for all users at once; no rows
#: where each user's last two items are held out.
CUT_SCHEMA: Final = _schema({SPLIT: pl.String, START: pl.Int64})

#: A ranking, of any method, over the whole catalogue, seen items included. Each test user has
#: `depth` items and as many more as their history has distinct ones, so that a list without the
#: seen ones is still `depth` long.
RANKING_SCHEMA: Final = _schema({USER: pl.String, RANK: pl.Int32, ITEM: pl.String, SCORE: pl.Float32})

#: What became of each test target under each method; `rank` is null past the ranking's depth. A ranking of a variant's
#: language model is the method `<variant>/<ranker>`, of the users who were drawn for it.
OUTCOME_SCHEMA: Final = _schema({METHOD: pl.String, USER: pl.String, ITEM: pl.String, RANK: pl.Int32})
