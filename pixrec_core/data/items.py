"""The items stage: metadata to the catalogue, one row per item."""

import html
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pixrec_core.data import database, raw_files
from pixrec_core.data.raw_table import PHOTO_ROW, CheckedTable, checked_rows, fetch_row, id_fault, write_query
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import (
    CATEGORIES,
    DESCRIPTION,
    DETAILS,
    FEATURES,
    IMAGE_URL,
    IN_STOCK,
    ITEM,
    ITEM_SCHEMA,
    MAIN_CATEGORY,
    OTHER_IMAGE_URLS,
    PRICE,
    STORE,
    TITLE,
)
from pixrec_core.settings import IngestSettings
from pixrec_core.stages import Stats

log = logging.getLogger(__name__)

#: `plain_text` returns texts that do not match unchanged. The expression is valid for Python, RE2 and SQL.
MAYBE_MARKUP: Final = r"[<>&{\p{Cc}]|\p{Z}{2}|^\p{Z}|\p{Z}$|[^ \P{Z}]"

_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|\w{1,32});")  # the semicolon is required: "AT&T" is kept
_MARKUP = re.compile(
    r"<!--.*?(?:-->|$)"
    r"|<(script|style)\b.*?(?:</\1\s*>|$)"
    r"|</?[a-z][^<>]*>|<![a-z][^<>]*>"  # a letter must follow: "I <3 you" and "size < 5" are kept
    r"|<[a-z][^<>=]*+=[^<>]*+$"  # a truncated tag; possessive, since a hostile text would take quadratic time
    r"|^[^<>]*[\"']\s*/>"  # the other half of a truncated tag
    r"|(?:^|(?<=[\s>}]))[.#@][a-z][^{}]{0,500}\{[^{}]*+\}"  # a CSS rule
    r"(?:\s*[^{}<>\s][^{}<>]{0,500}\{[^{}:]*+:[^{}]*+\})*",  # and the rules after it
    re.IGNORECASE | re.DOTALL,
)
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")


def plain_text(text: str) -> str:
    """Return `text` without tags, entities, CSS rules and control characters, with single spaces as white space.

    Entities are replaced first, because some shops escape their tags.
    """
    text = _ENTITY.sub(lambda entity: html.unescape(entity[0]), text)
    text = _CONTROL.sub("", text)  # before tags, which one of them would hide
    return " ".join(_MARKUP.sub(" ", text).split())


#: `plain_text` is a Python function; few texts need it.
_CLEANING: Final = f"""
CREATE MACRO clean(t) AS CASE WHEN regexp_matches(t, {database.literal(MAYBE_MARKUP)}) THEN plain_text(t) ELSE t END;
CREATE MACRO clean_list(l) AS list_filter(list_transform(l, lambda t: clean(t)), lambda t: t <> '');
"""


#: SQL of all columns of a row, cleaned. Rows are cleaned before they are merged: markup alone is no value.
_CLEANED: Final = f"""* REPLACE (
    {", ".join(f"clean({name}) AS {name}" for name in (TITLE, MAIN_CATEGORY, STORE))},
    {", ".join(f"clean_list({name}) AS {name}" for name in (CATEGORIES, FEATURES, DETAILS, DESCRIPTION))},
    CASE WHEN {PRICE} > 0 AND isfinite({PRICE}) THEN {PRICE} END AS {PRICE}
)"""
#: Of several rows of one item or product: the first value of each column that is not empty.
_MERGED: Final = {
    **{name: f"coalesce(arg_min({name}, line) FILTER ({name} <> ''), '')" for name in (TITLE, MAIN_CATEGORY, STORE)},
    **{
        name: f"coalesce(arg_min({name}, line) FILTER (len({name}) > 0), [])"
        for name in (CATEGORIES, FEATURES, DETAILS, DESCRIPTION)
    },
    PRICE: f"arg_min({PRICE}, line)",
    IN_STOCK: f"bool_or({IN_STOCK})",
}
#: Of one item. A column that says little, mapped to `parent`, can give thousands of items the same photos.
_MAX_PHOTOS: Final = 100
#: SQL of the columns of photos.
_PHOTOS: Final = {
    IMAGE_URL: f"image_urls[1] AS {IMAGE_URL}",
    OTHER_IMAGE_URLS: f"image_urls[2:{_MAX_PHOTOS}] AS {OTHER_IMAGE_URLS}",
}


def _merge(rows: str, key: str) -> str:
    """Return SQL of one row per `key` of a table: `_MERGED`, and the different photos in order as `image_urls`."""
    return f"""
    SELECT merged.*, coalesce(photos.image_urls, []) AS image_urls
    FROM (SELECT {key}, {", ".join(f"{sql} AS {name}" for name, sql in _MERGED.items())} FROM {rows} GROUP BY {key})
        AS merged
    LEFT JOIN (
        SELECT {key}, list(url ORDER BY first)[:{_MAX_PHOTOS}] AS image_urls
        FROM (
            SELECT {key}, url, min((line, position)) AS first
            FROM (SELECT {key}, line, unnest(image_urls) AS url, generate_subscripts(image_urls, 1) AS position
                FROM {rows})
            GROUP BY {key}, url
        )
        GROUP BY {key}
    ) AS photos USING ({key})"""  # noqa: S608


#: Rows of variants, with what they lack from the rows of their product (`parent`), which may have no id of their own.
_VARIANTS: Final = f"""
    WITH keyed AS (SELECT {_CLEANED}, coalesce(parent, {ITEM}) AS product FROM judged WHERE fault IS NULL
        AND (dropped IS NULL OR dropped = {database.literal(PHOTO_ROW)})),
    products AS ({_merge("keyed", "product")})
    SELECT variants.* EXCLUDE (fault, dropped, product) REPLACE (
        {", ".join(f"coalesce(nullif(variants.{n}, ''), products.{n}) AS {n}" for n in (TITLE, MAIN_CATEGORY, STORE))},
        {
    ", ".join(
        f"CASE WHEN len(variants.{n}) > 0 THEN variants.{n} ELSE products.{n} END AS {n}"
        for n in (CATEGORIES, FEATURES, DETAILS, DESCRIPTION)
    )
},
        coalesce(variants.{PRICE}, products.{PRICE}) AS {PRICE},
        variants.image_urls || products.image_urls AS image_urls
    )
    FROM keyed AS variants JOIN products USING (product) WHERE variants.dropped IS NULL"""  # noqa: S608
_ITEMS: Final = f"""
    WITH repeated AS (
        SELECT {ITEM} FROM {{rows}} GROUP BY {ITEM}
        HAVING count(*) > 1 OR bool_or(len(list_distinct(image_urls)) < len(image_urls))
    ),
    to_merge AS (SELECT {{columns}} FROM {{rows}} SEMI JOIN repeated USING ({ITEM})),
    merged AS (
        {_merge("to_merge", ITEM)}
        UNION ALL BY NAME
        SELECT {", ".join([ITEM, *_MERGED, "image_urls"])}
        FROM (SELECT {{columns}} FROM {{rows}} ANTI JOIN repeated USING ({ITEM}))
    )
    SELECT {", ".join(_PHOTOS.get(name, name) for name in ITEM_SCHEMA)} FROM merged ORDER BY {ITEM}"""  # noqa: S608

#: SQL of whether a row has a value, by the name in the mapping.
_YIELDS: Final = {
    **{name: f"trim({name}) <> ''" for name in (TITLE, MAIN_CATEGORY, STORE)},
    **{name: f"len({name}) > 0" for name in (CATEGORIES, FEATURES, DESCRIPTION)},
    PRICE: f"{PRICE} > 0 OR unread_price <> ''",
    IN_STOCK: f"{IN_STOCK} IS NOT NULL",
    "image": "len(image_urls) > 0",
}

#: Share of rows with the id of an earlier row, above which their number is a warning.
MANY_REPEATED: Final = 0.1


def build_items(settings: IngestSettings, paths: DatasetPaths) -> Stats:
    """Write items.parquet (ITEM_SCHEMA, sorted by item) and the quarantine of rejected rows.

    Rows with the same id are one item: of each column it has the first value that is not empty, and at most
    `_MAX_PHOTOS` photos. Missing texts and lists are empty; a missing price or `image_url` is null.

    Returns:
        rows, bad_lines, bad_share, duplicates, truncated; with_image, with_price; balance of the rows read.

    Raises:
        MissingArtefactError: the raw stage has not run.
        SourceError: the metadata file is missing, has no good row, or too many rejected ones.
    """
    load = raw_files.loader("items", paths, settings.max_expansion)
    with checked_rows(load, id_fault(ITEM), paths.items_quarantine, settings) as rows:
        rows.db.create_function("plain_text", plain_text, ["VARCHAR"], "VARCHAR")
        rows.db.execute(_CLEANING)
        (variants,) = fetch_row(rows.db, "SELECT count(parent) FROM good")
        query = _ITEMS.format(rows="good", columns=_CLEANED)
        if variants:
            rows.db.execute(f"CREATE TEMP TABLE filled AS {_VARIANTS}")
            query = _ITEMS.format(rows="filled", columns="*")
        write_query(rows.db, query, paths.items)
        stats = _stats(rows, paths.items)
        balance = rows.balance(stats["rows"], "repeats of an id (merged into its item)")
        log.info("%s: %s", paths.root.name, balance.sentence("items"))
        _warn(rows, stats, raw_files.locate(paths).reading.get("item_columns", {}))
        return stats | {"balance": balance.stats}


def _warn(rows: CheckedTable, stats: Stats, mapped: Mapping[str, str]) -> None:
    """Log what is probably not meant: many rows per id, texts that are no prices, and columns that yield nothing.

    `mapped` has the columns of the source by our names.
    """
    counted = {name: sql for name, sql in _YIELDS.items() if name in mapped}
    counts = ", ".join(f"count(*) FILTER ({sql})" for sql in counted.values())
    found = fetch_row(rows.db, f"SELECT {counts} FROM good") if counted else ()  # noqa: S608
    for name, count in zip(counted, found, strict=True):
        if not count:
            log.warning(
                "warning: the column %r, mapped to `%s`, has no readable value in any of %s rows; the run continues "
                "without it. Map another column if it should have", mapped[name], name, f"{rows.good:,}",
            )  # fmt: skip
    if stats["duplicates"] > MANY_REPEATED * rows.good:
        item, count, titles = fetch_row(
            rows.db,
            f"""SELECT {ITEM}, count(*), list(DISTINCT {TITLE}) FILTER ({TITLE} <> '') FROM good GROUP BY {ITEM}
                ORDER BY count(DISTINCT nullif({TITLE}, '')) DESC, count(*) DESC, {ITEM} LIMIT 1""",  # noqa: S608
        )
        if len(titles or ()) > 1:
            log.warning(
                "warning: %s of %s rows repeat the id of an earlier row and are merged into its item, such as %r (%s "
                "rows: %s). The run continues; map another column to `item` if these are different products",
                f"{stats['duplicates']:,}", f"{rows.good:,}", item, f"{count:,}",
                ", ".join(map(repr, sorted(titles)[:3])),
            )  # fmt: skip
    unread, prices, example = fetch_row(
        rows.db,
        f"SELECT count(unread_price), count({PRICE}), arg_min(unread_price, line) FROM good",  # noqa: S608
    )
    if unread:
        level = logging.INFO if prices else logging.WARNING
        log.log(
            level,
            "%s: %s of %s prices cannot be read and are left empty, such as %r",
            "note" if prices else "warning", f"{unread:,}", f"{unread + prices:,}", example,
        )  # fmt: skip


def _stats(checked: CheckedTable, path: Path) -> Stats:
    rows, with_image, with_price = fetch_row(
        checked.db,
        f"SELECT count(*), count({IMAGE_URL}), count({PRICE}) FROM read_parquet({database.file_literal(path)})",  # noqa: S608
    )
    return checked.stats | {
        "rows": rows,
        "duplicates": checked.good - rows,
        "with_image": with_image,
        "with_price": with_price,
    }
