"""The items stage: metadata to the catalogue, one row per item."""

from pathlib import Path
from typing import Final

from pixrec_core.data import database, raw_files
from pixrec_core.data.plain_text import MAYBE_MARKUP, plain_text
from pixrec_core.data.raw_table import CheckedTable, checked_rows, fetch_row, id_fault, write_query
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import (
    CATEGORIES,
    DESCRIPTION,
    DETAILS,
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

#: `plain_text` is a Python function; few texts need it.
_CLEANING: Final = f"""
CREATE MACRO clean(t) AS CASE WHEN regexp_matches(t, {database.literal(MAYBE_MARKUP)}) THEN plain_text(t) ELSE t END;
CREATE MACRO clean_list(l) AS list_filter(list_transform(l, lambda t: clean(t)), lambda t: t <> '');
"""


#: SQL of the columns that are not taken as they are.
_CLEANED: Final = {
    **{name: f"clean({name})" for name in (TITLE, MAIN_CATEGORY, STORE)},
    **{name: f"clean_list({name})" for name in (CATEGORIES, FEATURES, DETAILS, DESCRIPTION)},
    PRICE: f"CASE WHEN {PRICE} > 0 AND isfinite({PRICE}) THEN {PRICE} END",
}
#: Of rows with the same item, the first in the file stays.
_ITEMS: Final = f"""
    SELECT {", ".join(f"{_CLEANED.get(name, name)} AS {name}" for name in ITEM_SCHEMA)}
    FROM good WHERE line IN (SELECT min(line) FROM good GROUP BY {ITEM}) ORDER BY {ITEM}"""  # noqa: S608


def build_items(settings: IngestSettings, paths: DatasetPaths) -> Stats:
    """Write items.parquet (ITEM_SCHEMA, sorted by item) and the quarantine of rejected rows.

    Missing texts and lists are empty; a missing price or `image_url` is null.

    Returns:
        rows, bad_lines, bad_share, duplicates, truncated; with_image, with_price.

    Raises:
        MissingArtefactError: the raw stage has not run.
        SourceError: the metadata file is missing, has no good row, or too many rejected ones.
    """
    load = raw_files.loader("items", paths, settings.max_expansion)
    with checked_rows(load, id_fault(ITEM), paths.items_quarantine, settings) as rows:
        rows.db.create_function("plain_text", plain_text, ["VARCHAR"], "VARCHAR")
        rows.db.execute(_CLEANING)
        write_query(rows.db, _ITEMS, paths.items)
        return _stats(rows, paths.items)


def _stats(checked: CheckedTable, path: Path) -> Stats:
    rows, with_image, with_price = fetch_row(
        checked.db,
        f"SELECT count(*), count({IMAGE_URL}), count({PRICE}) FROM read_parquet({database.literal(path)})",  # noqa: S608
    )
    return checked.stats | {
        "rows": rows,
        "duplicates": checked.good - rows,
        "with_image": with_image,
        "with_price": with_price,
    }
