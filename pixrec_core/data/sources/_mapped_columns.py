"""SQL from the mapped columns of a table to the canonical columns."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import duckdb

from pixrec_core.data.database import literal
from pixrec_core.errors import SourceError
from pixrec_core.schemas import CATEGORIES, DESCRIPTION, DETAILS, FEATURES, IN_STOCK, MAIN_CATEGORY, PRICE, STORE, TITLE

TimeUnit = Literal["s", "ms", "us", "iso"]

#: Per unit: its milliseconds, and the range of numbers that look like it: from March 1973 to November 2286.
UNITS: Final = {"s": (1e3, 1e8, 1e10), "ms": (1.0, 1e11, 1e13), "us": (1e-3, 1e14, 1e16)}
NAMES: Final = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "iso": "ISO 8601"}
SURE: Final = 0.99  # share of values that must look like one unit; real files have some nonsense
HEAD_ROWS: Final = 32_768  # rows that decide the unit

_TEXTS: Final = (TITLE, MAIN_CATEGORY, STORE)
_LISTS: Final = (CATEGORIES, FEATURES, DESCRIPTION)
_TYPED: Final = "typed"  # the "unit" of Parquet's dates and times
_ISO: Final = r"'\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d([.]\d+)?)?(Z|[+-]\d\d(:?\d\d)?)?)?'"
_NUMBER: Final = "TRY_CAST(timestamp AS DOUBLE)"
#: A quantity, a truth value, or the words of product feeds. Other words are unknown.
_IN_STOCK: Final = """CASE
    WHEN TRY_CAST(in_stock AS DOUBLE) IS NOT NULL THEN TRY_CAST(in_stock AS DOUBLE) > 0
    WHEN lower(translate(trim(in_stock::VARCHAR), '-_ ', '')) IN
        ('true', 't', 'yes', 'y', 'instock', 'available', 'preorder', 'backorder', 'onbackorder') THEN true
    WHEN lower(translate(trim(in_stock::VARCHAR), '-_ ', '')) IN
        ('false', 'f', 'no', 'n', 'outofstock', 'soldout', 'unavailable', 'discontinued') THEN false END"""
_URL: Final = "regexp_full_match(trim(image::VARCHAR), '(?i)https?://.*')"


@dataclass(frozen=True)
class MappedColumns:
    """The mapped columns of one file.

    Attributes:
        names: the file's columns by our names.
        types: DuckDB's types of the columns by our names.
    """

    names: Mapping[str, str]
    types: Mapping[str, str]

    def interactions(self, unit: str, rating: float, *, strict: bool) -> str:
        """Return SQL of the canonical columns of interactions and of `fault`.

        Args:
            unit: of the times, from `time_unit`.
            rating: stars of every interaction if no column has them.
            strict: whether to reject a time that does not look like the unit, as when the unit was guessed.
        """
        time = _milliseconds(unit)
        stars = "TRY_CAST(rating AS DOUBLE)" if "rating" in self.names else f"{rating!r}::DOUBLE"
        faults = [self._empty(name) for name in self.names]
        if unit != _TYPED:
            fits = f"{_looks_like(unit)} AND ({time}) IS NOT NULL" if strict else f"({time}) IS NOT NULL"
            faults.append(self._not("timestamp", fits, f"a time in {NAMES[unit]}"))
        if "rating" in self.names:
            faults.append(self._not("rating", f"isfinite({stars})", "a number"))
        return f"""{self._id("user")} AS "user", {self._id("item")} AS item, {time} AS timestamp, {stars} AS rating,
            false AS is_variant, CASE {" ".join(faults)} END AS fault"""

    def items(self, separator: str | None, *, has_photos: bool) -> str:
        """Return SQL of the canonical columns of items and of `fault`.

        Args:
            separator: between the texts of a list that is a single text and not JSON.
            has_photos: whether an image that is not a URL is the path of a local photo.

        Raises:
            SourceError: a column of lists has a type that is neither text nor a list.
        """
        faults = [self._empty("item")]
        columns = {"item": self._id("item")}
        columns |= {name: f"coalesce({name}::VARCHAR, '')" if name in self.names else "''" for name in _TEXTS}
        for name in _LISTS:
            columns[name], fault = self._list(name, separator)
            faults += fault
        columns[DETAILS] = self._details()
        columns[PRICE] = "NULL::DOUBLE"
        if PRICE in self.names:
            columns[PRICE] = "number(trim(price::VARCHAR))"
        columns[IN_STOCK] = _IN_STOCK if IN_STOCK in self.names else "NULL::BOOLEAN"
        path = "WHEN trim(image::VARCHAR) <> '' THEN trim(image::VARCHAR)" if has_photos else ""
        address = f"address(CASE WHEN {_URL} THEN trim(image::VARCHAR) {path} END)"
        columns["image_url"] = address if "image" in self.names else "NULL::VARCHAR"
        selected = ", ".join(f"{sql} AS {name}" for name, sql in columns.items())
        return f"{selected}, CASE {' '.join(faults)} END AS fault"

    def time_unit(self, db: duckdb.DuckDBPyConnection, head: str, path: Path, given: TimeUnit | None) -> str:
        """Return the unit of the column `timestamp`: `given`, or the one that the values look like.

        Args:
            db: connection.
            head: SQL of the first rows.
            path: the file, for messages.
            given: the setting.

        Raises:
            SourceError: no setting, and the values do not look like one unit.
        """
        if self.types["timestamp"].startswith(("TIMESTAMP", "DATE")):
            return _TYPED
        if given:
            return given
        counts = ", ".join(f"count(*) FILTER ({_looks_like(unit)})" for unit in NAMES)
        query = f"SELECT count(*), {counts} FROM ({head}) WHERE timestamp::VARCHAR <> ''"  # noqa: S608
        ((total, *found),) = db.execute(query).fetchall()
        looks = dict(zip(NAMES, found, strict=True))
        likely = max(looks, key=lambda unit: looks[unit])
        if total == 0 or looks[likely] < SURE * total:
            shares = ", ".join(f"{count:,} look like {NAMES[unit]}" for unit, count in looks.items())
            raise SourceError(
                f"{path}: the unit of time in {self.names['timestamp']!r} is not clear: of its first {total:,} values "
                f"{shares}. Set `time_unit` in [datasets.<name>.source] of pixrec.toml to s, ms, us or iso"
            )
        return likely

    def check_urls(self, db: duckdb.DuckDBPyConnection, head: str, path: Path) -> None:
        """Raise SourceError if the column `image` has values but no URL, and the source has no photo folder."""
        query = f"""SELECT count(*), count(*) FILTER (is_url), any_value(image) FILTER (NOT is_url)
            FROM (SELECT image::VARCHAR AS image, {_URL} AS is_url FROM ({head}) WHERE image::VARCHAR <> '')"""  # noqa: S608
        ((values, urls, other),) = db.execute(query).fetchall()
        if values and not urls:
            raise SourceError(
                f"{path}: {self.names['image']!r} has no URL but {other!r}; if these are files, set `photos` in "
                "[datasets.<name>.source] of pixrec.toml to their folder"
            )

    def _id(self, name: str) -> str:
        """Return SQL of an id as text; a whole number stored as a float loses its `.0`."""
        column = f'"{name}"'
        if self.types[name] in ("DOUBLE", "FLOAT"):
            whole = f"CASE WHEN {column} = floor({column}) THEN TRY_CAST({column} AS BIGINT)::VARCHAR END"
            return f"coalesce({whole}, {column}::VARCHAR)"
        return f"{column}::VARCHAR"

    def _empty(self, name: str) -> str:
        empty = f'isnan("{name}")' if self.types[name] in ("DOUBLE", "FLOAT") else f"\"{name}\"::VARCHAR = ''"
        return f'WHEN "{name}" IS NULL OR {empty} THEN {literal(f"{self.names[name]} is empty")}'

    def _not(self, name: str, fits: str, kind: str) -> str:
        text = literal(f"{self.names[name]} is not {kind}: ")
        return f"WHEN NOT coalesce({fits}, false) THEN {text} || left({name}::VARCHAR, 40)"

    def _details(self) -> str:
        """Return SQL of the list of "name: value" of the columns of `details`, without empty values."""
        cells = [
            f"""{literal(label)} || ': ' || nullif(trim("{name}"::VARCHAR), '')"""
            for name in self.names
            for prefix, _, label in [name.partition(f"{DETAILS}.")]
            if not prefix and label
        ]
        return f"list_filter([{', '.join(cells)}]::VARCHAR[], lambda t: t IS NOT NULL)"

    def _list(self, name: str, separator: str | None) -> tuple[str, list[str]]:
        """Return SQL of a list of texts, and of its faults."""
        if name not in self.names:
            return "[]::VARCHAR[]", []
        kind = self.types[name]
        if kind.endswith("]"):
            texts = f"list_filter({name}::VARCHAR[], lambda t: t IS NOT NULL)"
            return f"coalesce({texts}, [])", []
        if kind.startswith(("STRUCT", "MAP")):
            raise SourceError(
                f"column {self.names[name]!r} has the type {kind}, which is not a list of texts; map another column to "
                f"`{name}` in [datasets.<name>.source] of pixrec.toml"
            )
        text = f"nullif({name}::VARCHAR, '')"
        parts = f"list_transform(string_split({text}, {literal(separator)}), lambda t: trim(t))"
        split = f"list_filter({parts}, lambda t: t <> '')"
        other = split if separator else f"CASE WHEN NOT starts_with(trim({text}), '[') THEN [{text}] END"
        is_json = f"json_valid({text}) AND json_type({text}) = 'ARRAY'"
        texts = f"list_filter(from_json({text}, '[\"VARCHAR\"]'), lambda t: t IS NOT NULL)"
        column = f"CASE WHEN {text} IS NULL THEN [] WHEN {is_json} THEN {texts} ELSE {other} END"
        return column, [self._not(name, f"({column}) IS NOT NULL", "a JSON list")]


def _looks_like(unit: str) -> str:
    """Return SQL of whether a value looks like a time of this unit."""
    if unit == "iso":
        return f"regexp_full_match(trim(timestamp::VARCHAR), {_ISO})"
    _, low, high = UNITS[unit]
    return f"({_NUMBER} >= {low!r} AND {_NUMBER} < {high!r})"


def _milliseconds(unit: str) -> str:
    """Return SQL of the time; NULL for a value that is not a time of this unit. Without an offset it is UTC."""
    if unit == _TYPED:
        return "epoch_ms(timestamp::TIMESTAMPTZ)"
    if unit == "iso":
        time = "epoch_ms(TRY_CAST(trim(timestamp::VARCHAR) AS TIMESTAMPTZ))"
        return f"CASE WHEN {_looks_like(unit)} THEN {time} END"
    return f"TRY_CAST(floor({_NUMBER} * {UNITS[unit][0]!r}) AS BIGINT)"
