"""Metadata lines -> the catalogue, one row an item.

Fields of the 2018 release (`asin`, `category`, `brand`, `imageURLHighRes`, ...) stand in for those
of 2023 where a line lacks the latter.
"""

from dataclasses import replace
from pathlib import Path
from typing import Final

from pixrec_core.data import database, json_lines, raw_files
from pixrec_core.data.json_lines import Parsed, Shape
from pixrec_core.data.plain_text import MAYBE_MARKUP, plain_text
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import (
    CATEGORIES,
    DESCRIPTION,
    FEATURES,
    IMAGE_URL,
    ITEM,
    ITEM_SCHEMA,
    MAIN_CATEGORY,
    PRICE,
    STORE,
    TITLE,
)
from pixrec_core.settings import IngestSettings
from pixrec_core.stages import Stats

#: Each text or list and the fields that it comes from, the preferred one first.
_TEXTS: Final = {TITLE: ("title",), MAIN_CATEGORY: ("main_category", "main_cat"), STORE: ("store", "brand")}
_LISTS: Final = {CATEGORIES: ("categories", "category"), FEATURES: ("features", "feature"), DESCRIPTION: (DESCRIPTION,)}
_PHOTOS: Final = ("images", "imageURLHighRes", "imageURL")

#: `list_items`: strings of a JSON list, or a string alone. `number`: of 12.5, "12.50", "$1,299"; not of "from 3.99".
#: `photo`: of the image marked MAIN, else of the first that has a URL. `large` (500 pixels) goes before `hi_res`:
#: it is more than a model sees, at a tenth of the bytes. `address`: an http(s) URL, or the path of a local photo if the
#: dataset has a photo folder.
_MACROS: Final = r"""
CREATE MACRO list_items(j) AS CASE
    WHEN j[1] = '[' THEN list_transform(
        list_filter(from_json(j, '["JSON"]')::VARCHAR[], lambda x: x[1] = '"'), lambda x: text(x))
    WHEN j[1] = '"' THEN [text(j)] ELSE [] END;
CREATE MACRO number(t) AS CASE WHEN regexp_full_match(t, '[$£€¥]? ?([0-9]+|[0-9]{1,3}(,[0-9]{3})+)([.][0-9]+)?')
    THEN TRY_CAST(regexp_replace(t, '[^0-9.]', '', 'g') AS DOUBLE) END;
CREATE MACRO any_price(j) AS CASE WHEN j[1] = '"' THEN number(trim(text(j))) ELSE TRY_CAST(j AS DOUBLE) END;
CREATE MACRO price(j) AS CASE WHEN any_price(j) > 0 AND isfinite(any_price(j)) THEN any_price(j) END;
CREATE MACRO address(t) AS CASE WHEN regexp_full_match(trim(t), '(?i)https?://[^\s\p{Cc}]+')
    OR (has_local_photos() AND regexp_full_match(trim(t), '[^\p{Cc}]+') AND NOT contains(t, '://')) THEN trim(t) END;
CREATE MACRO addresses(l) AS list_filter(list_transform(l, lambda t: address(t)), lambda t: t IS NOT NULL);
CREATE MACRO images(j) AS list_transform(
    CASE WHEN j[1] = '[' THEN from_json(j, '[{"variant":"VARCHAR","large":"VARCHAR","hi_res":"VARCHAR",
        "thumb":"VARCHAR"}]') ELSE [] END,
    lambda i: {main: i.variant = 'MAIN', url: coalesce(address(i.large), address(i.hi_res), address(i.thumb))});
CREATE MACRO photo(j) AS coalesce(
    list_filter(images(j), lambda i: i.main AND i.url IS NOT NULL)[1].url,
    list_filter(images(j), lambda i: i.url IS NOT NULL)[1].url);
"""

#: `plain_text` is Python's; few texts need it.
_CLEANING: Final = f"""
CREATE MACRO clean(t) AS CASE WHEN regexp_matches(t, {database.literal(MAYBE_MARKUP)}) THEN plain_text(t) ELSE t END;
CREATE MACRO clean_list(l) AS list_filter(list_transform(l, lambda t: clean(t)), lambda t: t <> '');
"""


def _raw(fields: tuple[str, ...]) -> str:
    return f"coalesce({', '.join(f'raw.{field}' for field in fields)})"


def _faults() -> str:
    """SQL of the first field whose JSON type is wrong."""
    kinds = [(name, "text", '"') for names in _TEXTS.values() for name in names]
    kinds += [(name, "list", '["') for names in _LISTS.values() for name in names]
    kinds += [(name, "list", "[") for name in _PHOTOS]
    return " ".join(f"""WHEN NOT contains('{first}', raw.{name}[1]) THEN '{name} is no {kind}'"""
                    for name, kind, first in kinds)  # fmt: skip


_KEY = "coalesce(raw.parent_asin, raw.asin)"

SHAPE: Final = Shape(
    fields=("parent_asin", "asin", "price", *_PHOTOS, *sum((*_TEXTS.values(), *_LISTS.values()), ())),
    columns={
        ITEM: f"text({_KEY})",
        **{column: f"coalesce(text({_raw(fields)}), '')" for column, fields in _TEXTS.items()},
        **{column: f"list_items({_raw(fields)})" for column, fields in _LISTS.items()},
        PRICE: "price(raw.price)",
        IMAGE_URL: "coalesce(photo(raw.images), addresses(list_items(raw.imageURLHighRes))[1], "
        "addresses(list_items(raw.imageURL))[1])",
    },
    fault=f"coalesce(id_fault('parent_asin', {_KEY}), CASE {_faults()} END)",
    macros=_MACROS,
)


def _final(column: str) -> str:
    """SQL of one column of the catalogue."""
    if column in _TEXTS:
        return f"clean({column}) AS {column}"
    if column in _LISTS:
        return f"clean_list({column}) AS {column}"
    return column


#: Of duplicates the first in the file stays.
_ITEMS = f"""
    SELECT {", ".join(map(_final, ITEM_SCHEMA))}
    FROM good WHERE line IN (SELECT min(line) FROM good GROUP BY {ITEM}) ORDER BY {ITEM}"""  # noqa: S608


def build(settings: IngestSettings, paths: DatasetPaths) -> Stats:
    """Write items.parquet (ITEM_SCHEMA, sorted by item) and the quarantine of bad lines.

    Missing texts are empty, missing lists too; price and `image_url` are null.

    Returns:
        rows, bad_lines, bad_share, duplicates, truncated; with_image, with_price.

    Raises:
        MissingArtefactError: the raw stage has not run.
        SourceError: no metadata file, no good line in it, or too many bad ones.
    """
    raw = raw_files.locate(paths)
    has_local_photos = f"CREATE MACRO has_local_photos() AS {raw.photos is not None};"
    shape = replace(SHAPE, macros=has_local_photos + SHAPE.macros)
    with json_lines.parse(raw.metadata, shape, paths.items_quarantine, settings, raw.metadata_stand_for) as parsed:
        parsed.db.create_function("plain_text", plain_text, ["VARCHAR"], "VARCHAR")
        parsed.db.execute(_CLEANING)
        json_lines.write(parsed.db, _ITEMS, paths.items)
        return _stats(parsed, paths.items)


def _stats(parsed: Parsed, path: Path) -> Stats:
    rows, with_image, with_price = json_lines.fetch_row(
        parsed.db,
        f"SELECT count(*), count({IMAGE_URL}), count({PRICE}) FROM read_parquet({database.literal(path)})",  # noqa: S608
    )
    return parsed.stats | {
        "rows": rows,
        "duplicates": parsed.good - rows,
        "with_image": with_image,
        "with_price": with_price,
    }
