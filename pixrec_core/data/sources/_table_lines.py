"""Rows of a table -> lines in the shape of Amazon Reviews 2023, line n from line n of the table's file."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa

from pixrec_core import progress
from pixrec_core.data.database import CONFIG, literal
from pixrec_core.data.json_lines import FAULT
from pixrec_core.data.sources._table_rows import BATCH, Table
from pixrec_core.data.sources._table_times import NAMES, looks_like, milliseconds

log = logging.getLogger(__name__)

_TEXTS: Final = ("title", "main_category", "store", "price")
_LISTS: Final = ("categories", "features", "description")
_URL: Final = "regexp_full_match(trim(image::VARCHAR), '(?i)https?://.*')"


def connect() -> duckdb.DuckDBPyConnection:
    """DuckDB as the queries here need it: times without an offset are UTC."""
    db = duckdb.connect(config=CONFIG)
    db.execute("SET TimeZone = 'UTC'")  # not at connecting: the extension that knows it is loaded at its first use
    return db


def write_lines(db: duckdb.DuckDBPyConnection, table: Table, query: str, target: Path) -> None:
    """Write the lines that `query` makes of each batch, and a blank one for each line of the file without a row."""
    batches = progress.track(table.batches(), f"{target.name}, batches of {BATCH:,} rows", None, log)
    with target.open("wb") as file:
        for batch in batches:
            db.register("batch", pa.Table.from_batches([batch]))
            lines = db.sql(query).to_arrow_table().column(0)
            file.write("\n".join([*lines.to_pylist(), ""]).encode())


def interaction_lines(columns: Mapping[str, str], schema: pa.Schema, unit: str, rating: float, *, strict: bool) -> str:
    """SQL from a batch of interactions to lines of reviews.

    Args:
        columns: the file's columns by our names.
        schema: types of the columns.
        unit: of the times; see `_table_times`.
        rating: stars of every interaction where no column tells them.
        strict: whether a time that does not look like the unit is a fault; so where the unit was guessed.
    """
    stars = "TRY_CAST(rating AS DOUBLE)" if "rating" in columns else f"{rating!r}::DOUBLE"
    fields = {"user_id": _id("user", schema), "parent_asin": _id("item", schema)}
    fields |= {"timestamp": milliseconds(unit), "rating": stars}
    faults = [_empty(name, columns[name]) for name in columns]
    if unit != "typed":
        fits = looks_like(unit) if strict else f"({milliseconds(unit)}) IS NOT NULL"
        told = literal(f"{columns['timestamp']} is no time in {NAMES[unit]}: ")
        faults.append(f"WHEN NOT coalesce({fits} AND ({milliseconds(unit)}) IS NOT NULL, false) "
                      f"THEN {told} || left(timestamp::VARCHAR, 40)")  # fmt: skip
    if "rating" in columns:
        told = literal(f"{columns['rating']} is no number: ")
        faults.append(f"WHEN NOT coalesce(isfinite({stars}), false) THEN {told} || left(rating::VARCHAR, 40)")
    return _lines(columns, fields, faults)


def item_lines(columns: Mapping[str, str], schema: pa.Schema, separator: str | None, *, has_photos: bool) -> str:
    """SQL from a batch of items to lines of metadata.

    Args:
        columns: the file's columns by our names.
        schema: types of the columns.
        separator: between the texts of a list that is written as one text and is no JSON.
        has_photos: whether an image that is no URL is the path of a local photo.
    """
    fields, faults = {"parent_asin": _id("item", schema)}, [_empty("item", columns["item"])]
    for name in filter(columns.__contains__, _TEXTS):
        fields[name] = f"{name}::VARCHAR"
    for name in filter(columns.__contains__, _LISTS):
        if pa.types.is_list(schema.field(name).type) or pa.types.is_large_list(schema.field(name).type):
            fields[name] = f"{name}::VARCHAR[]"
        else:
            fields[name] = _list(name, separator)
            told = literal(f"{columns[name]} is no JSON list: ")
            faults.append(f"WHEN ({fields[name]}) IS NULL THEN {told} || left({name}, 40)")
    if "image" in columns:
        path = "WHEN trim(image::VARCHAR) <> '' THEN trim(image::VARCHAR)" if has_photos else ""
        url = f"CASE WHEN {_URL} THEN trim(image) {path} END"
        fields["images"] = f"CASE WHEN ({url}) IS NOT NULL THEN [{{'variant': 'MAIN', 'large': {url}}}] ELSE [] END"
    return _lines(columns, fields, faults)


def urls(db: duckdb.DuckDBPyConnection) -> tuple[int, int, str | None]:
    """Of the column `image` of the table `batch`: values, those that are URLs, and one that is none."""
    values = "count(*), count(*) FILTER (is_url), any_value(image::VARCHAR) FILTER (NOT is_url)"
    (row,) = db.sql(
        f"SELECT {values} FROM (SELECT image, {_URL} AS is_url FROM batch WHERE image::VARCHAR <> '')"  # noqa: S608
    ).fetchall()
    return row[0], row[1], row[2]


def _lines(columns: Mapping[str, str], fields: Mapping[str, str], faults: list[str]) -> str:
    """SQL of a line: the fields, or of a bad row its own columns and the reason."""
    good = ", ".join(f"{literal(name)}, {sql}" for name, sql in fields.items())
    own = ", ".join(f"{literal(theirs)}, {ours}::VARCHAR" for ours, theirs in columns.items())
    empty = ", ".join(f"CASE WHEN {name}::VARCHAR = '' THEN NULL ELSE {name} END AS {name}" for name in columns)
    return f"""
        SELECT repeat(chr(10), gap) || CASE WHEN why IS NULL
            THEN json_object({good}) ELSE json_object({own}, {literal(FAULT)}, why) END
        FROM (SELECT *, coalesce(fault, CASE {" ".join(faults)} END) AS why
              FROM (SELECT gap, fault, {empty} FROM batch))"""  # noqa: S608


def _empty(name: str, column: str) -> str:
    return f"WHEN {name} IS NULL THEN {literal(f'{column} is empty')}"


def _id(name: str, schema: pa.Schema) -> str:
    """SQL of an id as text; a whole number that was stored as a float loses its `.0`."""
    if pa.types.is_floating(schema.field(name).type):
        return f"CASE WHEN {name} = floor({name}) THEN {name}::BIGINT::VARCHAR ELSE {name}::VARCHAR END"
    return f"{name}::VARCHAR"


def _list(name: str, separator: str | None) -> str:
    """SQL of the texts in one text; NULL where it begins as a JSON list and is none."""
    split = (
        f"list_filter(list_transform(string_split({name}, {literal(separator)}), lambda x: trim(x)), lambda x: x <> '')"
    )
    other = split if separator else f"CASE WHEN NOT starts_with(trim({name}), '[') THEN [{name}] END"
    is_json = f"json_valid({name}) AND json_type({name}) = 'ARRAY'"
    return f"""CASE WHEN {name} IS NULL THEN [] WHEN {is_json} THEN from_json({name}, '["VARCHAR"]')
        ELSE {other} END"""
