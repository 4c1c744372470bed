"""Interactions and items from CSV or Parquet files, with a mapping of their columns.

Both files are read in place. The line of a row is the line of a CSV file that the row starts on, and the number of a
Parquet row from 1.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import duckdb
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from pixrec_core import files
from pixrec_core.data import raw_lines
from pixrec_core.data.database import CONFIG
from pixrec_core.data.raw_table import RawTable, fetch_row
from pixrec_core.data.sources import RawFiles
from pixrec_core.data.sources._csv import check_columns, load_csv, load_head
from pixrec_core.data.sources._mapped_columns import HEAD_ROWS, MappedColumns, TimeUnit
from pixrec_core.data.sources._parquet import damaged_error, is_parquet, load_parquet, parquet_header, scan_parquet
from pixrec_core.errors import SourceError
from pixrec_core.schemas import DETAILS

Column = Annotated[str, Field(min_length=1)]
Label = Annotated[str, Field(pattern=r'^[^"\x00-\x1f]+$')]  # part of a quoted name in SQL


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InteractionColumns(_Section):
    """The columns of the interactions file, by their content."""

    user: Column = Field(description="id of the user")
    item: Column = Field(description="id of the item, as in the items file")
    timestamp: Column = Field(description="when; see `time_unit`")
    rating: Column | None = Field(None, description="stars, 0 to 5; none: `constant_rating` for all")


class ItemColumns(_Section):
    """The columns of the items file, by their content; lists are JSON, Parquet lists, or one text (`separator`)."""

    item: Column = Field(description="id of the item")
    title: Column | None = Field(None, description="name")
    main_category: Column | None = Field(None, description="department")
    categories: Column | None = Field(None, description="list, from the widest to the narrowest")
    store: Column | None = Field(None, description="brand or shop")
    features: Column | None = Field(None, description="list of short texts")
    details: dict[Label, Column] = Field({}, description="more columns that say something, by name of the property")
    description: Column | None = Field(None, description="list of texts")
    price: Column | None = Field(None, description="in the shop's currency, with a point")
    in_stock: Column | None = Field(None, description="true or false, a quantity, or words of product feeds")
    image: Column | None = Field(None, description="URL, or name of a file below `photos`")

    @model_serializer(mode="wrap")
    def _flat(self, dump: SerializerFunctionWrapHandler) -> dict[str, str]:
        """Return one dictionary of all columns, with `details.<name>` for those of `details`."""
        columns: dict[str, Any] = dump(self)
        return columns | {f"{DETAILS}.{label}": column for label, column in columns.pop(DETAILS).items()}


class Options(_Section):
    """Fields of `[datasets.<name>.source]` besides `kind = "tables"`."""

    interactions: Path = Field(description="CSV (plain or .gz) or Parquet; relative to the folder of pixrec.toml")
    items: Path = Field(description="likewise")
    interaction_columns: InteractionColumns
    item_columns: ItemColumns
    photos: Path | None = Field(None, description="folder of the files that `image` names; none: they are URLs")
    time_unit: TimeUnit | None = Field(None, description="s, ms, us (since 1970) or iso; none: guessed from the values")
    constant_rating: float = Field(5.0, ge=0, le=5, description="stars of every interaction without a rating column")
    separator: str | None = Field(None, min_length=1, description="between the texts of a list that is one text")
    delimiter: str = Field(",", min_length=1, max_length=1, description="between the cells of CSV")


def fetch(options: Options, root: Path, raw: Path) -> RawFiles:
    """Check both tables and return them; nothing is copied.

    Raises:
        SourceError: a file or the photo folder is missing, a file is damaged or lacks a column, the unit of its times
            is not clear, or it names images without a photo folder.
    """
    interactions, items = watched(options, root)
    photos = _photos(options, root)
    reading = options.model_dump(mode="json", exclude={"interactions", "items", "photos"}, exclude_none=True)
    names = reading["interaction_columns"]
    with _first_rows(interactions, names, options.delimiter) as (db, head):
        reading["unit"] = _mapped(db, names, head).time_unit(db, head, interactions, options.time_unit)
    names = reading["item_columns"]
    with _first_rows(items, names, options.delimiter) as (db, head):
        columns = _mapped(db, names, head)
        columns.items(options.separator, has_photos=photos is not None)
        if photos is None and "image" in names:
            columns.check_urls(db, head, items)
    files.remove(raw)  # of another source
    return RawFiles(interactions, items, photos, reading)


def watched(options: Options, root: Path) -> list[Path]:
    """Return both tables."""
    return [_resolved(options.interactions, root), _resolved(options.items, root)]


def load_interactions(db: duckdb.DuckDBPyConnection, raw: RawFiles, folder: Path, max_expansion: float) -> RawTable:
    """Load the interactions; `folder` is for temporary files.

    Raises:
        SourceError: the file is missing, damaged or empty, lacks a column, or expands past `max_expansion`.
    """
    reading = raw.reading

    def select(columns: MappedColumns) -> str:
        return columns.interactions(reading["unit"], reading["constant_rating"], strict="time_unit" not in reading)

    return _load(db, raw.reviews, reading["interaction_columns"], select, reading["delimiter"], folder, max_expansion)


def load_items(db: duckdb.DuckDBPyConnection, raw: RawFiles, folder: Path, max_expansion: float) -> RawTable:
    """Load the items; `folder` is for temporary files.

    Raises:
        SourceError: the file is missing, damaged or empty, lacks a column, or expands past `max_expansion`.
    """
    reading = raw.reading

    def select(columns: MappedColumns) -> str:
        return columns.items(reading.get("separator"), has_photos=raw.photos is not None)

    return _load(db, raw.metadata, reading["item_columns"], select, reading["delimiter"], folder, max_expansion)


def _load(
    db: duckdb.DuckDBPyConnection,
    path: Path,
    names: dict[str, str],
    select: Callable[[MappedColumns], str],
    delimiter: str,
    folder: Path,
    max_expansion: float,
) -> RawTable:
    raw_lines.require_content(path)
    if is_parquet(path):
        check_columns(path, names, parquet_header(db, path))
        return load_parquet(db, path, names, select(_mapped(db, names, scan_parquet(path, names))))
    columns = MappedColumns(names, dict.fromkeys(names, "VARCHAR"))
    return load_csv(db, path, names, select(columns), delimiter, folder, max_expansion)


@contextmanager
def _first_rows(path: Path, names: dict[str, str], delimiter: str) -> Iterator[tuple[duckdb.DuckDBPyConnection, str]]:
    """Yield a connection and SQL of the first rows of the mapped columns."""
    raw_lines.require_content(path)
    with TemporaryDirectory(prefix="pixrec-") as folder, duckdb.connect(config=CONFIG) as db:
        rows = "FROM parsed"
        if is_parquet(path):
            check_columns(path, names, parquet_header(db, path))
            rows = scan_parquet(path, names)
        else:
            load_head(db, path, names, delimiter, Path(folder))
        head = f"FROM ({rows} LIMIT {HEAD_ROWS})"
        try:
            (count,) = fetch_row(db, f"SELECT count(*) {head}")
        except duckdb.Error as error:
            raise damaged_error(path, error) from error
        if not count:
            raise SourceError(f"{path} has no row below its header; name a file that has")
        yield db, head


def _mapped(db: duckdb.DuckDBPyConnection, names: dict[str, str], rows: str) -> MappedColumns:
    return MappedColumns(names, {name: kind for name, kind, *_ in db.execute(f"DESCRIBE {rows}").fetchall()})


def _resolved(path: Path, root: Path) -> Path:
    return (root / path.expanduser()).resolve()


def _photos(options: Options, root: Path) -> Path | None:
    folder = _resolved(options.photos, root) if options.photos else None
    if folder and not folder.is_dir():
        raise SourceError(f"{folder} is not a folder; correct `photos` in [datasets.<name>.source] of pixrec.toml")
    return folder
