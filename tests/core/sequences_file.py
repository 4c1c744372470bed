"""Writes a small sequences.duckdb without running the stage `sequences`."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import duckdb
import polars as pl

from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import CATALOGUE_SCHEMA, CUT_SCHEMA, SEQUENCE_SCHEMA

DAY = 86_400_000  # milliseconds


def catalogue(train: Sequence[Sequence[str]], items: Sequence[str], imageless: Sequence[str] = ()) -> pl.DataFrame:
    counts = {item: sum(list(bought).count(item) for bought in train) for item in items}
    rows = [
        {"item": item, "title": f"title of {item}", "has_image": item not in imageless, "train_count": counts[item]}
        for item in sorted(items)
    ]
    empty = dict.fromkeys(CATALOGUE_SCHEMA)
    return pl.DataFrame([empty | row for row in rows], schema=CATALOGUE_SCHEMA)


def sequences(bought: Mapping[str, Sequence[str]], tied: Sequence[str] = ()) -> pl.DataFrame:
    """Return all three splits of the users' purchases; the last two items are held out, with one item per day."""
    rows = [
        {
            "split": split,
            "user": user,
            "items": list(items[: len(items) - held_back]),
            "timestamps": [DAY * (day + 1) for day in range(len(items) - held_back)],
            "tied": split != "train" and user in tied,
        }
        for split, held_back in (("train", 2), ("validation", 1), ("test", 0))
        for user, items in sorted(bought.items())
    ]
    return pl.DataFrame(rows, schema=SEQUENCE_SCHEMA)


def write(
    paths: DatasetPaths, items: pl.DataFrame, lists: pl.DataFrame, cuts: Mapping[str, int] = MappingProxyType({})
) -> None:
    paths.root.mkdir(parents=True, exist_ok=True)
    starts = pl.DataFrame(list(cuts.items()), schema=CUT_SCHEMA, orient="row")
    with duckdb.connect(str(paths.sequences)) as connection:
        for name, frame in (("items", items), ("sequences", lists), ("cuts", starts)):
            connection.register("frame", frame.to_arrow())
            connection.execute(f"CREATE TABLE {name} AS SELECT * FROM frame")
            connection.unregister("frame")
