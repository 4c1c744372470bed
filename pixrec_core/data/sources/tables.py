"""Interactions and items from CSV or Parquet files, with a mapping of their columns.

Files are read in place. The line of a row is the line of a CSV file that the row starts on, and the number of a
Parquet row from 1. `fetch` looks at the first rows and decides how values are read; what it assumes is logged as a note
and recorded in `RawFiles.reading`, so that every later stage reads the same.
"""

import codecs
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Annotated, Any, Self

import duckdb
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from pixrec_core import files
from pixrec_core.data import raw_lines
from pixrec_core.data.database import CONFIG
from pixrec_core.data.raw_table import RawTable
from pixrec_core.data.sources import RawFiles, _heads, _times, absolute_path
from pixrec_core.data.sources._cell_macros import MACROS
from pixrec_core.data.sources._csv import load_csv
from pixrec_core.data.sources._mapped_columns import MappedColumns
from pixrec_core.data.sources._mapping import Mapping
from pixrec_core.data.sources._parquet import is_parquet, load_parquet, scan_parquet
from pixrec_core.data.sources._times import TimeUnit
from pixrec_core.errors import SourceError
from pixrec_core.schemas import DETAILS
from pixrec_core.settings import TimeZone

log = logging.getLogger(__name__)

Column = Annotated[str, Field(min_length=1)]
Label = Annotated[str, Field(pattern=r'^[^"\x00-\x1f]+$')]  # part of a quoted name in SQL


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Columns(_Section):
    where: Column | None = Field(
        None, description="DuckDB expression over the file's columns; rows for which it is not true are left out"
    )


class InteractionColumns(_Columns):
    """The columns of the interactions file, by their content."""

    user: Column = Field(description="id of the user")
    item: Column = Field(description="id of the item, as in the items file")
    timestamp: Column = Field(description="when; see `time_unit` and `time_format`")
    rating: Column | None = Field(None, description="stars, 0 to 5; none: `constant_rating` for all")
    quantity: Column | None = Field(None, description="pieces; rows of 0 or less are returns and left out")


class ItemColumns(_Columns):
    """The columns of the items file, by their content; lists are JSON, Parquet lists, or one text (`separator`)."""

    item: Column = Field(description="id of the item")
    title: Column | None = Field(None, description="name")
    main_category: Column | None = Field(None, description="department")
    categories: Column | None = Field(None, description="list, from the widest to the narrowest")
    store: Column | None = Field(None, description="brand or shop")
    features: Column | None = Field(None, description="list of short texts")
    details: dict[Label, Column] = Field({}, description="more columns that say something, by name of the property")
    description: Column | None = Field(None, description="list of texts")
    price: Column | None = Field(None, description="in the shop's currency; see `decimal`")
    in_stock: Column | None = Field(None, description="true or false, a quantity, or words of product feeds")
    image: Column | None = Field(None, description="URLs, or files below `photos`; the first that works is used")
    parent: Column | None = Field(
        None, description="id of the product whose variants the rows are; fills their empty cells"
    )

    @model_serializer(mode="wrap")
    def _flat(self, dump: SerializerFunctionWrapHandler) -> dict[str, str]:
        """Return one dictionary of all columns, with `details.<name>` for those of `details`."""
        columns: dict[str, Any] = dump(self)
        return columns | {f"{DETAILS}.{label}": column for label, column in columns.pop(DETAILS).items()}


class Options(_Section):
    """Fields of `[datasets.<name>.source]` besides `kind = "tables"`."""

    interactions: Path = Field(
        description="CSV or Parquet: a file (plain, .gz or .zip), a folder, or a pattern such as orders-*.csv; "
        "relative to the folder of pixrec.toml"
    )
    items: Path = Field(description="likewise")
    interaction_columns: InteractionColumns
    item_columns: ItemColumns
    photos: Path | None = Field(None, description="folder of the files that `image` names; none: they are URLs")
    time_unit: TimeUnit | None = Field(
        None, description="s, ms, us or ns (since 1970), excel (days) or iso; none: by the values"
    )
    time_format: str | None = Field(None, min_length=2, description="as of strptime, such as %d.%m.%Y %H:%M")
    time_zone: TimeZone = Field("UTC", description="zone of times without an offset, such as Europe/Berlin")
    decimal: Annotated[str, Field(pattern="^[.,]$")] | None = Field(
        None, description="decimal separator of prices, `.` or `,`; none: by the values"
    )
    constant_rating: float = Field(5.0, ge=0, le=5, description="stars of every interaction without a rating column")
    separator: str | None = Field(None, min_length=1, description="between the texts of a list that is one text")
    image_separator: str | None = Field(
        None, min_length=1, description="between the photos of a cell; none: by the values"
    )
    delimiter: str | None = Field(
        None, pattern=r'^[^"\r\n]$', description="between the cells of CSV; none: by the header of each file"
    )
    encoding: str | None = Field(
        None, description="of CSV, such as cp1251; none: UTF-8, UTF-16 or Windows-1252, by the content of each file"
    )

    @field_validator("delimiter", mode="before")
    @classmethod
    def _named_delimiter(cls, delimiter: Any) -> Any:
        return {"\\t": "\t", "tab": "\t"}.get(delimiter, delimiter) if isinstance(delimiter, str) else delimiter

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, encoding: str | None) -> str | None:
        try:
            return encoding and codecs.lookup(encoding).name
        except (LookupError, ValueError):
            raise ValueError("unknown encoding; such as utf-8, cp1252 or gb18030") from None

    @model_validator(mode="after")
    def _one_form_of_time(self) -> Self:
        if self.time_unit and self.time_format:
            raise ValueError("give `time_unit` or `time_format`, not both")
        if self.time_format and "%" not in self.time_format:
            raise ValueError("`time_format` has no %; write it as %d.%m.%Y %H:%M")
        return self


def fetch(options: Options, root: Path, raw: Path) -> RawFiles:
    """Check both tables and return them; nothing is copied.

    Raises:
        SourceError: a file or the photo folder is missing, a file is damaged or lacks a column, the form of its times
            is not clear, or it names images without a photo folder.
    """
    photos = _photos(options, root)
    with _heads_of(options, root) as (interactions, items):
        found = _heads.decide(interactions, items, options, has_photos=photos is not None)
    for note in found.notes:
        log.info("%s", note)
    interactions_path, items_path = absolute_path(options.interactions, root), absolute_path(options.items, root)
    if not any(path.is_relative_to(raw.resolve()) for path in (interactions_path, items_path, photos) if path):
        files.remove(raw)  # of another source
    return RawFiles(interactions_path, items_path, photos, found.reading)


def preview(options: Options, root: Path) -> list[str]:
    """Return lines that show how the first rows of both tables are read, and notes on what is assumed.

    Raises:
        SourceError: as `fetch`.
    """
    photos = _photos(options, root) is not None
    with _heads_of(options, root) as (interactions, items):
        found = _heads.decide(interactions, items, options, has_photos=photos)
        return [*_heads.preview(interactions, items, found, has_photos=photos), *found.notes]


def watched(options: Options, root: Path) -> list[Path]:
    """Return the files of both tables."""
    return [
        file
        for path in (options.interactions, options.items)
        for file in raw_lines.list_files(absolute_path(path, root))
    ]


def load_interactions(
    db: duckdb.DuckDBPyConnection, raw: RawFiles, folder: Path, max_expansion: float
) -> list[RawTable]:
    """Load the files of the interactions; `folder` is for temporary files.

    Raises:
        SourceError: a file is missing, damaged or empty, lacks a column, or expands past `max_expansion`.
    """
    db.execute(f"SET TimeZone = '{raw.reading['time_zone']}'; {_times.MACROS}")
    return _load(db, raw, "interaction", MappedColumns.interactions, folder, max_expansion)


def load_items(db: duckdb.DuckDBPyConnection, raw: RawFiles, folder: Path, max_expansion: float) -> list[RawTable]:
    """Load the files of the items; `folder` is for temporary files.

    Raises:
        SourceError: a file is missing, damaged or empty, lacks a column, or expands past `max_expansion`.
    """
    db.execute(MACROS)
    return _load(db, raw, "item", MappedColumns.items, folder, max_expansion)


def _load(
    db: duckdb.DuckDBPyConnection,
    raw: RawFiles,
    table: str,
    select: Callable[[MappedColumns], str],
    folder: Path,
    max_expansion: float,
) -> list[RawTable]:
    reading, has_photos = raw.reading, raw.photos is not None
    columns = dict(reading[f"{table}_columns"])
    where = columns.pop("where", None)
    numbers, delimiter, encoding = reading[f"{table}_numbers"], reading.get("delimiter"), reading.get("encoding")
    every = Mapping(columns, where, numbers, delimiter=delimiter, encoding=encoding)
    loaded = []
    for number, path in enumerate(raw_lines.list_files(raw.reviews if table == "interaction" else raw.metadata)):
        raw_lines.require_content(path)
        mapping = every.of_file(path)
        if is_parquet(path):
            scan = scan_parquet(db, path, mapping)
            with mapping.reporting_where(path):
                types = {name: kind for name, kind, *_ in db.execute(f"DESCRIBE {scan}").fetchall()}
            sql = select(MappedColumns(columns, types, reading, has_photos))
            loaded.append(load_parquet(db, path, mapping, scan, sql, number))
            continue
        types = dict.fromkeys(columns, "VARCHAR") | ({"keep": "BOOLEAN"} if where else {})
        sql = select(MappedColumns(columns, types, reading, has_photos))
        work = folder / str(number)
        work.mkdir()
        loaded.append(load_csv(db, path, mapping, sql, work, max_expansion, number))
    return loaded


@contextmanager
def _heads_of(options: Options, root: Path) -> Iterator[tuple[_heads.Head, _heads.Head]]:
    """Yield the first rows of both tables."""

    def opened(path: Path, columns: BaseModel, first: int) -> AbstractContextManager[_heads.Head]:
        names = columns.model_dump(exclude_none=True)
        mapping = Mapping(names, names.pop("where", None), delimiter=options.delimiter, encoding=options.encoding)
        return _heads.open_head(db, absolute_path(path, root), mapping, first)

    with (
        duckdb.connect(config=CONFIG) as db,
        opened(options.interactions, options.interaction_columns, 0) as interactions,
        opened(options.items, options.item_columns, 2) as items,
    ):
        db.execute(MACROS + _times.MACROS)
        try:
            yield interactions, items
        except duckdb.InvalidInputException as error:  # text that is not UTF-8: the message names file and value
            raise SourceError(f"a table cannot be read ({str(error).partition(chr(10))[0]}); write it again") from error


def _photos(options: Options, root: Path) -> Path | None:
    folder = absolute_path(options.photos, root) if options.photos else None
    if folder and not folder.is_dir():
        raise SourceError(f"{folder} is not a folder; correct `photos` in [datasets.<name>.source] of pixrec.toml")
    return folder
