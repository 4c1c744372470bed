"""Fields of Amazon Reviews 2023: review lines to interactions, metadata lines to items.

Fields of the 2018 release (`asin`, `category`, `brand`, `imageURLHighRes`, ...) are read where a line lacks those of
2023.

DuckDB reads only the named fields of each JSON line, on all cores, and keeps file order, so that row numbers are line
numbers. It does not say why it cannot read a line: Python finds the reason, for rejected lines only.
"""

import json
import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import duckdb
import numpy as np
import pyarrow as pa

from pixrec_core.data import raw_lines
from pixrec_core.data.database import file_literal, literal
from pixrec_core.data.raw_lines import LineIndex
from pixrec_core.data.raw_table import RawTable, fetch_row
from pixrec_core.data.sources import RawFiles
from pixrec_core.data.sources._cell_macros import MACROS as CELL_MACROS
from pixrec_core.data.sources._mapped_columns import BLANKS, QUOTES
from pixrec_core.data.sources._times import MACROS as TIME_MACROS
from pixrec_core.data.sources._times import NAMES, SURE, UNITS, milliseconds
from pixrec_core.errors import SourceError
from pixrec_core.schemas import (
    CATEGORIES,
    DESCRIPTION,
    DETAILS,
    FEATURES,
    IN_STOCK,
    ITEM,
    MAIN_CATEGORY,
    PRICE,
    RATING,
    STORE,
    TIMESTAMP,
    TITLE,
    USER,
)

#: `text`: content of a JSON string, given the text of the JSON value (NULL for a missing field).
#: `id_text`: an id: a string without the blanks around it, in the Unicode form NFC, or a whole number. The condition is
#: much faster than the functions, and few ids fulfil it; the others are what is between the quotes.
#: `id_fault`: why a JSON value is not an id.
_LINE_MACROS: Final = rf"""
CREATE MACRO text(j) AS CASE WHEN starts_with(j, '"') THEN json_extract_string(j, '$') END;
CREATE MACRO id_text(j) AS CASE
    WHEN j < '"!' OR suffix(j, ' "') OR contains(j, '\') OR strlen(j) <> length(j)
        THEN trim(nfc_normalize(text(j)), {BLANKS})
    WHEN starts_with(j, '"') THEN substring(j, 2, strlen(j) - 2) ELSE regexp_replace(j, '[.]0+$', '') END;
CREATE MACRO id_fault(name, j) AS CASE
    WHEN j IS NULL THEN name || ' is missing'
    WHEN NOT starts_with(j, '"') AND NOT regexp_full_match(j, '-?[0-9]+([.]0+)?')
        THEN name || ' is neither text nor a whole number: ' || left(j, 40) END;
"""


@dataclass(frozen=True)
class Shape:
    """The fields of one kind of line. SQL refers to a field as `raw.<field>`: the text of its JSON value, or NULL.

    That of `fault` also refers to a canonical column as `raw.read_<column>`, so that no value is read twice.

    Attributes:
        fields: JSON keys to read.
        columns: SQL of each canonical column.
        fault: SQL of the reason to reject a line; NULL for a good one.
        macros: SQL that defines the macros of the others, besides `text` and `id_fault`.
    """

    fields: tuple[str, ...]
    columns: dict[str, str]
    fault: str
    macros: str = ""


def load_json_lines(
    db: duckdb.DuckDBPyConnection, path: Path, shape: Shape, folder: Path, max_expansion: float
) -> list[RawTable]:
    """Load a file of JSON lines, plain or gzip; `folder` is for temporary files.

    Raises:
        SourceError: the file is missing or empty, or expands past `max_expansion`.
    """
    plain = raw_lines.unpack(path, folder, max_expansion)
    _refuse_other_forms(path, plain.path)
    index, query = _load(db, plain.path, shape, folder)
    return [
        RawTable(
            path,
            f"SELECT *, NULL::VARCHAR AS dropped FROM ({query})",  # noqa: S608
            partial(raw_lines.pick, plain.path, index),
            index.count,
            explain=_why_unreadable,
            damage=plain.damage,
        )
    ]


def _refuse_other_forms(path: Path, plain: Path) -> None:
    """Raise SourceError for a JSON list, or an object that is written on several lines."""
    with plain.open("rb") as file:
        first = file.read(raw_lines.CHUNK).removeprefix(raw_lines.BOM).lstrip()
    line = first.partition(b"\n")[0].strip()
    if line.startswith(b"[") or line == b"{":
        form = "a JSON list" if line.startswith(b"[") else "JSON with an object on several lines"
        raise SourceError(f"{path} is {form}; write one object per line, for example with `jq -c '.[]?'`")


def _load(db: duckdb.DuckDBPyConnection, path: Path, shape: Shape, folder: Path) -> tuple[LineIndex, str]:
    """Create the table `parsed`; return the lines of the file, and SQL of the rows with their `line`.

    DuckDB skips blank lines and stops at endless ones; a file that has any is read from a copy without them.
    """
    db.execute(_LINE_MACROS + shape.macros)
    index = raw_lines.index(path)
    if index.readable and _create(db, path, shape) == index.count:
        return index, "SELECT *, rowid + 1 AS line FROM parsed"
    copy = folder / "readable.jsonl"
    numbers = raw_lines.write_readable(path, copy)
    rows = _create(db, copy, shape)
    assert rows == len(numbers), f"{path}: {rows} rows of {len(numbers)} lines that are not blank"
    db.register("numbers", pa.table({"line": np.frombuffer(numbers, np.int64)}))
    db.execute("CREATE TABLE line_numbers AS FROM numbers")
    db.unregister("numbers")
    return index, "SELECT * FROM parsed POSITIONAL JOIN line_numbers"


def _create(db: duckdb.DuckDBPyConnection, path: Path, shape: Shape) -> int:
    keys = ", ".join(f"{field}: 'JSON'" for field in shape.fields)
    casts = ", ".join(f"{field}::VARCHAR AS {field}" for field in shape.fields)
    read = ", ".join(f'{sql} AS "read_{name}"' for name, sql in shape.columns.items())
    columns = ", ".join(f'"read_{name}" AS "{name}"' for name in shape.columns)
    scan = f"""read_json({file_literal(path)}, format = 'newline_delimited', compression = 'none',
        maximum_object_size = {raw_lines.LONGEST}, ignore_errors = true, columns = {{{keys}}})"""
    raw = f"(SELECT *, {read} FROM (SELECT {casts} FROM {scan}) AS raw) AS raw"  # noqa: S608
    query = f"CREATE OR REPLACE TABLE parsed AS SELECT {columns}, {shape.fault} AS fault FROM {raw}"  # noqa: S608
    (rows,) = fetch_row(db, query)
    return int(rows)


def _why_unreadable(raw: bytes) -> str | None:  # noqa: PLR0911
    """Return why a line is not a JSON object; None for a JSON object."""
    if len(raw) > raw_lines.LONGEST:
        return f"longer than {raw_lines.LONGEST:,} bytes"
    if b"\0" in raw:
        return "contains a NUL byte"
    try:
        value = json.loads(raw.decode("utf-8-sig"))
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        return f"broken UTF-8 at byte {error.start + 1}"
    except UnicodeEncodeError:
        return "contains half of a surrogate pair"
    except RecursionError:
        return "nested too deeply"
    except ValueError as error:
        return f"not JSON: {error}"
    return None if isinstance(value, dict) else "not a JSON object"


log = logging.getLogger(__name__)

_KEY: Final = "coalesce(raw.parent_asin, raw.asin)"
#: A whole number, a number that looks like a time, or a text of either or of a time in ISO 8601. A cast alone would
#: round 1.5 and accept 1e3.
_TIME: Final = f"""CASE
    WHEN raw.timestamp[1] <> '"' AND NOT contains(raw.timestamp, '.') AND NOT contains(raw.timestamp, 'e')
        THEN TRY_CAST(raw.timestamp AS BIGINT)
    WHEN raw.timestamp[1] <> '"' AND TRY_CAST(raw.timestamp AS DOUBLE) >= 1e8
        THEN TRY_CAST(floor(TRY_CAST(raw.timestamp AS DOUBLE)) AS BIGINT)
    WHEN regexp_full_match(raw.timestamp, '"[0-9]{{9,19}}([.][0-9]*)?"')
        THEN TRY_CAST(floor(TRY_CAST(text(raw.timestamp) AS DOUBLE)) AS BIGINT)
    WHEN raw.timestamp[1] = '"' THEN {milliseconds("iso").replace("timestamp::VARCHAR", "text(raw.timestamp)")} END"""
_STARS: Final = """CASE WHEN raw.rating[1] <> '"' THEN TRY_CAST(raw.rating AS DOUBLE)
    WHEN regexp_full_match(raw.rating, '"[0-9]([.][0-9]+)?"') THEN TRY_CAST(text(raw.rating) AS DOUBLE) END"""

REVIEWS: Final = Shape(
    fields=("user_id", "parent_asin", "asin", "timestamp", "rating"),
    columns={
        USER: "id_text(raw.user_id)",
        ITEM: f"id_text({_KEY})",
        TIMESTAMP: _TIME,
        RATING: _STARS,
        "is_variant": "raw.asin <> raw.parent_asin",
    },
    fault=f"""coalesce(id_fault('user_id', raw.user_id), id_fault('parent_asin', {_KEY}), CASE
        WHEN raw.timestamp IS NULL THEN 'timestamp is missing'
        WHEN raw.read_timestamp IS NULL
            THEN 'timestamp is neither a whole number nor ISO 8601: ' || left(raw.timestamp, 40)
        WHEN raw.rating IS NULL THEN 'rating is missing'
        WHEN raw.read_rating IS NULL THEN 'rating is not a number: ' || left(raw.rating, 40) END)""",
    macros=TIME_MACROS,
)

#: Keys of `details` that say nothing about taste: identifiers, size and weight, and dates, ranks and reviews that are
#: only known after the item was listed.
_NOISE: Final = (
    r"(?i)\s*(asin|upc|ean|gtin|sku|isbn.*|.*\b(id|number|code)|date first .*|.*best ?sellers?\b.*|.*\breviews?"
    r"|(customer|average|star) rating.*|is discontinued.*|.*\b(dimensions|weight)"
    r"|(domestic|international) shipping)\s*:?\s*"
)

#: Fields of each column, in order of preference.
_TEXTS: Final = {TITLE: ("title",), MAIN_CATEGORY: ("main_category", "main_cat"), STORE: ("store", "brand")}
_LISTS: Final = {CATEGORIES: ("categories", "category"), FEATURES: ("features", "feature"), DESCRIPTION: (DESCRIPTION,)}
_PHOTOS: Final = ("images", "imageURLHighRes", "imageURL")

#: `entries`: "key: value" of a JSON object, of the text of one, or of a list of objects with a name and a value,
#: without `_NOISE`, long numbers and nested objects. `list_items`: texts of a JSON list, of the text of one, or one
#: string. `photos`: the image marked MAIN, then the others with an address; images are a list of objects, the hub's
#: object of lists, a list of addresses, or what a cell of a table may hold. `large` (500 pixels) is preferred to
#: `hi_res`: it is larger than a model's input, at a tenth of the bytes.
_MACROS: Final = rf"""
{CELL_MACROS}
CREATE MACRO flat_items(j) AS list_filter(json_texts(j), lambda t: t IS NOT NULL);
CREATE MACRO list_items(j) AS CASE
    WHEN j[1] = '[' THEN flat_items(j)
    WHEN starts_with(j, '"[') AND json_valid(text(j)) THEN flat_items(text(j))
    WHEN j[1] = '"' THEN [text(j)] ELSE [] END;
CREATE MACRO scalar(j) AS CASE
    WHEN j[1] = '"' THEN text(j)
    WHEN j[1] = '[' THEN array_to_string(flat_items(j), ', ')
    WHEN j[1] NOT IN ('{{', 'n') THEN j END;
CREATE MACRO pairs(j) AS list_transform(json_keys(j), lambda k: {{
    key: trim(k, ' :'), value: list_transform(
        [json_extract(j, '/' || replace(replace(k, '~', '~0'), '/', '~1'))::VARCHAR], lambda v: scalar(v))[1]}});
CREATE MACRO object(j) AS CASE
    WHEN j[1] = '{{' THEN j
    WHEN j[1] = '"' AND json_valid(text(j)) AND json_type(text(j)) = 'OBJECT' THEN text(j) END;
CREATE MACRO named(j) AS CASE WHEN j[1] = '[' THEN list_transform(
    list_filter(from_json(j, '["JSON"]'), lambda x: json_type(x) = 'OBJECT'),
    lambda x: {{key: coalesce(x ->> '$.name', x ->> '$.key'), value: x ->> '$.value'}}) END;
CREATE MACRO entries(j) AS coalesce(list_transform(
    list_filter(coalesce(pairs(object(j)), named(j)), lambda p: p.value <> ''
        AND NOT regexp_full_match(p.key, {literal(_NOISE)}) AND NOT regexp_full_match(p.value, '[0-9Xx -]{{8,}}')),
    lambda p: p.key || ': ' || p.value), []);
CREATE MACRO addresses(l) AS list_filter(list_transform(l, lambda t: address(t)), lambda t: t IS NOT NULL);
CREATE MACRO zipped(d) AS list_transform(
    list_zip(d.variant, d.large, d.hi_res, d.thumb),
    lambda z: {{variant: z[1], "large": z[2], hi_res: z[3], thumb: z[4]}});
CREATE MACRO images(j) AS list_transform(
    CASE WHEN j[1] = '[' THEN from_json(j, '[{{"variant":"VARCHAR","large":"VARCHAR","hi_res":"VARCHAR",
            "thumb":"VARCHAR"}}]')
        WHEN j[1] = '{{' THEN zipped(from_json(j, '{{"variant":["VARCHAR"],"large":["VARCHAR"],"hi_res":["VARCHAR"],
            "thumb":["VARCHAR"]}}'))
        ELSE [] END,
    lambda i: {{main: coalesce(i.variant = 'MAIN', false),
        url: coalesce(address(i.large), address(i.hi_res), address(i.thumb))}});
CREATE MACRO of_images(l) AS list_transform(
    list_filter(l, lambda i: i.main AND i.url IS NOT NULL)
    || list_filter(l, lambda i: NOT i.main AND i.url IS NOT NULL),
    lambda i: i.url);
CREATE MACRO odd_photos(j) AS addresses(list_transform(list_transform(
    list_transform([CASE WHEN j[1] = '"' THEN text(j) ELSE j END], lambda t: cell_images(t))[1],
    lambda x: trim(x, ',;|' || {QUOTES} || {BLANKS})), lambda x: as_url(x, has_local_photos())));
CREATE MACRO photos(j) AS CASE
    WHEN j IS NULL OR j IN ('null', '[]') THEN []
    ELSE list_transform([CASE
        WHEN j[1] = '"' OR (starts_with(j, '["') AND contains(j, '{{')) THEN []
        WHEN starts_with(j, '["') THEN addresses(list_items(j))
        ELSE of_images(images(j)) END], lambda l: CASE WHEN len(l) > 0 THEN l ELSE coalesce(odd_photos(j), []) END)[1]
    END;
"""


def _first(fields: tuple[str, ...]) -> str:
    """Return SQL of the first field that a line has."""
    return f"coalesce({', '.join(f'raw.{field}' for field in fields)})"


def _type_faults() -> str:
    """Return SQL of the first field with the wrong JSON type."""
    kinds = [(name, "text", '"-0123456789') for names in _TEXTS.values() for name in names]
    kinds += [(name, "a list", '["') for names in _LISTS.values() for name in names]
    kinds += [(name, "a list", '[{"') for name in _PHOTOS]
    return " ".join(
        f"WHEN NOT contains('{start}', raw.{name}[1]) THEN '{name} is not {kind}'" for name, kind, start in kinds
    )


METADATA: Final = Shape(
    fields=("parent_asin", "asin", "price", "details", *_PHOTOS, *sum((*_TEXTS.values(), *_LISTS.values()), ())),
    columns={
        ITEM: f"id_text({_KEY})",
        **{column: f"coalesce(scalar({_first(fields)}), '')" for column, fields in _TEXTS.items()},
        **{column: f"list_items({_first(fields)})" for column, fields in _LISTS.items()},
        DETAILS: "entries(raw.details)",
        PRICE: """CASE WHEN raw.price[1] = '"' THEN price_of(trim(text(raw.price)), '.')
            ELSE TRY_CAST(raw.price AS DOUBLE) END""",
        IN_STOCK: "NULL::BOOLEAN",
        "unread_price": """CASE WHEN raw.price[1] = '"' AND price_of(trim(text(raw.price)), '.') IS NULL
            THEN nullif(trim(text(raw.price)), '')
            WHEN raw.price[1] <> '"' AND TRY_CAST(raw.price AS DOUBLE) IS NULL THEN left(raw.price, 40) END""",
        "image_urls": f"flatten(list_transform([{', '.join(f'raw.{name}' for name in _PHOTOS)}], lambda j: photos(j)))",
        "parent": "NULL::VARCHAR",
    },
    fault=f"coalesce(id_fault('parent_asin', {_KEY}), CASE {_type_faults()} END)",
    macros=_MACROS,
)


def load_interactions(
    db: duckdb.DuckDBPyConnection, raw: RawFiles, folder: Path, max_expansion: float
) -> list[RawTable]:
    """Load the reviews; `folder` is for temporary files.

    Times are milliseconds. If nearly all look like another unit instead, they are in that unit, and a note says so.

    Raises:
        SourceError: the file is missing or empty, or expands past `max_expansion`.
    """
    (table,) = load_json_lines(db, raw.reviews, REVIEWS, folder, max_expansion)
    units = {unit: values for unit, values in UNITS.items() if unit in ("s", "us", "ns")}
    counts = ", ".join(
        f"count(*) FILTER (timestamp >= {low!r} AND timestamp < {high!r})" for *_, low, high in units.values()
    )
    rows, *found = fetch_row(db, f"SELECT count(timestamp), {counts} FROM parsed")  # noqa: S608
    for (unit, (factor, *_)), count in zip(units.items(), found, strict=True):
        if count > SURE * rows:
            log.info("note: %s: times are in %s, not milliseconds, and are read as such", raw.reviews, NAMES[unit])
            # A time that is too large stays as it is, so that its row is rejected as past the year 9999.
            milliseconds = f"coalesce(try_cast(floor(timestamp * {factor!r}) AS BIGINT), timestamp)"
            query = f"SELECT * REPLACE ({milliseconds} AS timestamp) FROM ({table.query})"  # noqa: S608
            return [replace(table, query=query)]
    return [table]


def load_items(db: duckdb.DuckDBPyConnection, raw: RawFiles, folder: Path, max_expansion: float) -> list[RawTable]:
    """Load the metadata; `folder` is for temporary files.

    Raises:
        SourceError: the file is missing or empty, or expands past `max_expansion`.
    """
    return load_json_lines(db, raw.metadata, METADATA, folder, max_expansion)
