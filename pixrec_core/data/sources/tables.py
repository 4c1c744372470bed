"""The user's own tables, CSV or Parquet: interactions and items, with a mapping of their columns.

Both become lines in the shape of Amazon Reviews 2023 in the dataset's folder, batch by batch. Line
n stands for line n of a CSV file and for row n of a Parquet file, so that bad rows are quarantined
under the name and the line that the user knows.
"""

from pathlib import Path
from typing import Annotated, Final

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from pixrec_core import files
from pixrec_core.data.raw_lines import UNPACKED
from pixrec_core.data.sources import RawFiles
from pixrec_core.data.sources._table_lines import connect, interaction_lines, item_lines, urls, write_lines
from pixrec_core.data.sources._table_rows import Table, open_table
from pixrec_core.data.sources._table_times import TimeUnit, unit_of
from pixrec_core.errors import SourceError

REVIEWS: Final = "reviews.jsonl"
METADATA: Final = "meta.jsonl"

Column = Annotated[str, Field(min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InteractionColumns(_Section):
    """The columns of the interactions file, by what they hold."""

    user: Column = Field(description="id of the user")
    item: Column = Field(description="id of the item, as in the items file")
    timestamp: Column = Field(description="when; see `time_unit`")
    rating: Column | None = Field(None, description="stars, 0 to 5; none: `constant_rating` for all")


class ItemColumns(_Section):
    """The columns of the items file, by what they hold; lists are JSON, Parquet's own, or one text (`separator`)."""

    item: Column = Field(description="id of the item")
    title: Column | None = Field(None, description="name")
    main_category: Column | None = Field(None, description="department")
    categories: Column | None = Field(None, description="list, from the widest to the narrowest")
    store: Column | None = Field(None, description="brand or shop")
    features: Column | None = Field(None, description="list of short texts")
    description: Column | None = Field(None, description="list of texts")
    price: Column | None = Field(None, description="in the shop's currency, with a point")
    image: Column | None = Field(None, description="URL, or name of a file below `photos`")


class Options(_Section):
    """Fields of `[datasets.<name>.source]` beside `kind = "tables"`."""

    interactions: Path = Field(description="CSV (plain or .gz) or Parquet; relative to the folder of pixrec.toml")
    items: Path = Field(description="likewise")
    interaction_columns: InteractionColumns
    item_columns: ItemColumns
    photos: Path | None = Field(None, description="folder of the files that `image` names; none: they are URLs")
    time_unit: TimeUnit | None = Field(None, description="s, ms, us (since 1970) or iso; none: told from the values")
    constant_rating: float = Field(5.0, ge=0, le=5, description="stars of every interaction without a rating column")
    separator: str | None = Field(None, min_length=1, description="between the texts of a list that is one text")
    delimiter: str = Field(",", min_length=1, max_length=1, description="between the cells of CSV")


def fetch(options: Options, root: Path, raw: Path) -> RawFiles:
    """Write both tables as lines into `raw`, all at once or not at all.

    Raises:
        SourceError: a file or the folder of photos is missing, a file is damaged or lacks a column, or holds times
            of no clear unit or images without a folder.
    """
    interactions, items = watched(options, root)
    photos = _photos(options, root)
    with files.replacing(raw) as folder:
        folder.mkdir(parents=True)
        _write_reviews(options, interactions, folder)
        _write_metadata(options, items, folder)
    return RawFiles(raw / REVIEWS, raw / METADATA, photos, interactions, items)


def watched(options: Options, root: Path) -> list[Path]:
    """Both tables."""
    return [_at(options.interactions, root), _at(options.items, root)]


def _at(path: Path, root: Path) -> Path:
    return (root / path.expanduser()).resolve()


def _photos(options: Options, root: Path) -> Path | None:
    folder = _at(options.photos, root) if options.photos else None
    if folder and not folder.is_dir():
        raise SourceError(f"{folder} is no folder; mend `photos` in [datasets.<name>.source] of pixrec.toml")
    return folder


def _write_reviews(options: Options, path: Path, folder: Path) -> None:
    columns = options.interaction_columns.model_dump(exclude_none=True)
    table = open_table(path, columns, options.delimiter, folder)
    with connect() as db:
        db.register("batch", _first(table, path))
        unit = unit_of(db, path, columns["timestamp"], options.time_unit, table.schema.field("timestamp").type)
        strict = options.time_unit is None
        query = interaction_lines(columns, table.schema, unit, options.constant_rating, strict=strict)
        write_lines(db, table, query, folder / REVIEWS)
    files.remove(folder / UNPACKED)


def _write_metadata(options: Options, path: Path, folder: Path) -> None:
    columns = options.item_columns.model_dump(exclude_none=True)
    table = open_table(path, columns, options.delimiter, folder)
    with connect() as db:
        db.register("batch", _first(table, path))
        if options.photos is None and "image" in columns:
            _check_urls(path, columns["image"], *urls(db))
        query = item_lines(columns, table.schema, options.separator, has_photos=options.photos is not None)
        write_lines(db, table, query, folder / METADATA)
    files.remove(folder / UNPACKED)


def _first(table: Table, path: Path) -> pa.Table:
    """The first rows, to tell from."""
    batch = next(table.batches(), None)
    if batch is None:
        raise SourceError(f"{path} holds no row below its header; name a file that does")
    return pa.Table.from_batches([batch])


def _check_urls(path: Path, column: str, values: int, found: int, other: str | None) -> None:
    """File names without a folder would leave every item without its photo, silently."""
    if values and not found:
        raise SourceError(
            f"{path}: {column!r} holds no URL but {other!r}; if these are files, name their folder by `photos` in "
            "[datasets.<name>.source] of pixrec.toml"
        )
