"""The three input files of the sequences stage."""

from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl

from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import IMAGE_SCHEMA, IMAGE_URL, INTERACTION_SCHEMA, ITEM, ITEM_SCHEMA, TITLE

#: user, item, timestamp, rating; the position is the index in the list, from 1
Row = tuple[str | None, str | None, int | None, float | None]


def write_inputs(
    paths: DatasetPaths, rows: Iterable[Row], items: Iterable[str | None], photos: Mapping[str, str]
) -> DatasetPaths:
    """Write the files; `items` are the known ids, `photos` maps those with a URL to their download status."""
    paths.root.mkdir(parents=True, exist_ok=True)
    catalogue = ({ITEM: i, TITLE: f"Title of {i}", IMAGE_URL: "http://a/b.jpg"} for i in items)
    _frame(catalogue, ITEM_SCHEMA).write_parquet(paths.items)
    _frame(({ITEM: i, "status": s} for i, s in photos.items()), IMAGE_SCHEMA).write_parquet(paths.images_manifest)
    numbered = ((*row, position) for position, row in enumerate(rows, start=1))
    records = (dict(zip(INTERACTION_SCHEMA, values, strict=True)) for values in numbered)
    _frame(records, INTERACTION_SCHEMA).write_parquet(paths.interactions)
    return paths


def _frame(records: Iterable[dict[str, Any]], schema: pl.Schema) -> pl.DataFrame:
    return pl.DataFrame([dict.fromkeys(schema) | record for record in records], schema=schema)


def small(paths: DatasetPaths) -> DatasetPaths:
    """Write the files of three users and five items, all valid."""
    histories = {"u1": "abcd", "u2": "bcea", "u3": "cab"}
    rows: list[Row] = [(u, i, 1000 + t, 5.0) for u, items in histories.items() for t, i in enumerate(items)]
    return write_inputs(paths, rows, "abcde", dict.fromkeys("abcde", "ok"))
