"""SQL from the mapped columns of a table to the canonical columns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pixrec_core import schemas
from pixrec_core.data.database import literal
from pixrec_core.data.raw_table import PHOTO_ROW
from pixrec_core.data.sources import _times
from pixrec_core.errors import SourceError
from pixrec_core.schemas import CATEGORIES, DESCRIPTION, DETAILS, FEATURES, IN_STOCK, MAIN_CATEGORY, PRICE, STORE, TITLE

_TEXTS: Final = (TITLE, MAIN_CATEGORY, STORE)
_LISTS: Final = (CATEGORIES, FEATURES, DESCRIPTION)
_FLOATS: Final = ("DOUBLE", "FLOAT")
_INTEGERS: Final = ("BIGINT", "INTEGER", "SMALLINT", "TINYINT", "HUGEINT")
_NUMBERS: Final = (*_FLOATS, "DECIMAL", *_INTEGERS, *(f"U{kind}" for kind in _INTEGERS))

#: SQL of the characters that are removed around ids.
BLANKS: Final = " || ".join(f"chr({ord(blank)})" for blank in schemas.BLANKS)
#: A missing value as programs write it as text, with blanks around it.
_MISSING: Final = literal(rf"[{schemas.BLANKS}]*(NULL|null|None|nan|NaN|NaT|<NA>|\\N)?[{schemas.BLANKS}]*")
QUOTES: Final = "chr(34) || chr(39) || chr(8216) || chr(8217) || chr(8220) || chr(8221) || chr(8222)"
_QUANTITY: Final = r"'\s*[(]?[+\x{2212}\x{2013}-]?[0-9][0-9.,\s]*[)]?\s*'"
#: A whole number that was stored as a float.
WHOLE: Final = "'[+-]?[0-9]+[.]0+'"
#: A quantity, a truth value, or the words of product feeds. Other words are unknown. `IN` would become a join in
#: DuckDB, which changes the order of the rows.
_IN_STOCK: Final = """CASE
    WHEN isnan(TRY_CAST(in_stock AS DOUBLE)) THEN NULL
    WHEN TRY_CAST(in_stock AS DOUBLE) IS NOT NULL THEN TRY_CAST(in_stock AS DOUBLE) > 0
    WHEN list_contains(['true', 't', 'yes', 'y', 'instock', 'available', 'preorder', 'backorder', 'onbackorder',
            'ja', 'lieferbar', 'verfügbar', 'vorrätig', 'auflager', 'oui', 'disponible', 'enstock', 'si', 'sí'],
        lower(translate(trim(in_stock::VARCHAR), '-_ ', ''))) THEN true
    WHEN list_contains(['false', 'f', 'no', 'n', 'outofstock', 'soldout', 'unavailable', 'discontinued',
            'nein', 'ausverkauft', 'nichtlieferbar', 'nichtverfügbar', 'nichtvorrätig', 'nichtauflager', 'non',
            'épuisé', 'agotado', 'esaurito'],
        lower(translate(trim(in_stock::VARCHAR), '-_ ', ''))) THEN false END"""

FILTERED: Final = "left out by `where`"
RETURNED: Final = "returns (a quantity of 0 or less)"


@dataclass(frozen=True)
class MappedColumns:
    """The mapped columns of one file.

    Attributes:
        names: the file's columns by our names.
        types: DuckDB's types of the columns by our names; `keep` if there is a row filter; `broken`, why a row cannot
            be read, if a column may be no text.
        reading: how to read the values, from the settings and the first rows: `time` (a form of `_times`), `strict`
            (whether a time must look like the form), `constant_rating`, `point` (decimal separator of prices),
            `separator`, `image_separator`, `whole` (names of ids that are whole numbers stored as floats).
        has_photos: whether an image that is not a URL is the path of a local photo.
    """

    names: Mapping[str, str]
    types: Mapping[str, str]
    reading: Mapping[str, Any]
    has_photos: bool = False

    def interactions(self) -> str:
        """Return SQL of the canonical columns of interactions, of `fault` and of `dropped`."""
        form = _times.TYPED if _times.is_typed(self.types["timestamp"]) else self.reading["time"]
        time = _times.milliseconds(form)
        if form == _times.TYPED and not _times.is_typed(self.types["timestamp"]):  # other files have times
            form, time = "iso", "epoch_ms(TRY_CAST(timestamp::VARCHAR AS TIMESTAMPTZ))"
        rating = f"{self.reading['constant_rating']!r}::DOUBLE"
        faults = [self._empty(name) for name in self.names]
        if form != _times.TYPED:
            fits = f"({time}) IS NOT NULL"
            if self.reading["strict"] and form in _times.UNITS:  # any number is a time of some unit
                fits = f"{_times.looks_like(form)} AND {fits}"
            faults.append(self._not("timestamp", fits, f"a time in {_times.name_of(form)}"))
        if "rating" in self.names:
            rating = "TRY_CAST(rating AS DOUBLE)"
            if self.types["rating"] == "VARCHAR":
                rating = f"coalesce({rating}, TRY_CAST(replace(rating, ',', '.') AS DOUBLE))"
            faults.append(self._not("rating", f"isfinite({rating})", "a number"))
        returned = "false"
        if "quantity" in self.names and _is_number(self.types["quantity"]):
            returned = "quantity <= 0"
        elif "quantity" in self.names:
            is_quantity = f"regexp_full_match(quantity::VARCHAR, {_QUANTITY})"
            faults.append(self._not("quantity", is_quantity, "a quantity"))
            negative = r"regexp_matches(quantity::VARCHAR, '[-\x{2212}\x{2013}(]')"
            returned = f"{is_quantity} AND ({negative} OR NOT regexp_matches(quantity::VARCHAR, '[1-9]'))"
        return f"""{self._id("user")} AS "user", {self._id("item")} AS item, {time} AS timestamp, {rating} AS rating,
            false AS is_variant, {self._verdict(faults, (RETURNED, returned))}"""

    def items(self) -> str:
        """Return SQL of the canonical columns of items, of `parent`, `unread_price`, `fault` and `dropped`.

        Raises:
            SourceError: a column has a type that cannot be read.
        """
        for name in self.names:
            if "BLOB" in self.types[name] and name != "image":  # within a structure, where it is not decoded
                raise self._type_error(name)
        faults = [self._empty("item")]
        columns = {
            name: f"CASE WHEN NOT ({self._is_empty(name)}) THEN {self._id(name)} END" if name in self.names else "NULL"
            for name in ("item", "parent")
        }
        columns |= {name: f"coalesce({self._text(name)}, '')" if name in self.names else "''" for name in _TEXTS}
        for name in _LISTS:
            columns[name], fault = self._list(name)
            faults += fault
        columns[DETAILS] = self._details()
        columns[IN_STOCK] = _IN_STOCK if IN_STOCK in self.names else "NULL::BOOLEAN"
        columns[PRICE], columns["unread_price"] = self._price()
        columns["image_urls"] = self.images
        selected = ", ".join(f"{sql} AS {name}" for name, sql in columns.items())
        photo_row = "false"
        if "parent" in self.names:
            photo_row = f"NOT ({self._is_empty('parent')}) AND ({self._is_empty('item')})"
        return f"{selected}, {self._verdict(faults, (PHOTO_ROW, photo_row))}"

    def _verdict(self, faults: list[str], rule: tuple[str, str]) -> str:
        """Return SQL of `fault` and `dropped`; a row that the filter leaves out has no fault."""
        reason, condition = rule
        if "broken" in self.types:  # its values are NULL, which would be another fault or a photo row
            faults = ["WHEN broken IS NOT NULL THEN broken", *faults]
            condition = f"broken IS NULL AND ({condition})"
        where = f"WHEN NOT coalesce(keep, false) THEN {literal(FILTERED)}" if "keep" in self.types else ""
        filtered = "WHEN NOT coalesce(keep, false) THEN NULL" if where else ""
        if reason == PHOTO_ROW and condition != "false":
            filtered += f" WHEN {condition} THEN NULL"
        dropped = f"CASE {where} WHEN {condition} THEN {literal(reason)} END"
        if condition == "false":
            dropped = f"CASE {where} END" if where else "NULL::VARCHAR"
        return f"CASE {filtered} {' '.join(faults)} END AS fault, {dropped} AS dropped"

    def _id(self, name: str) -> str:
        """Return SQL of an id as text.

        Surrounding blanks are removed and its Unicode form is NFC. A whole number stored as a float loses its `.0`.

        Raises:
            SourceError: the column has lists or structures.
        """
        self._require_no_parts(name)
        column, text = f'"{name}"', f'"{name}"::VARCHAR'
        if self.types[name] in _FLOATS:
            whole = f"CASE WHEN {column} = floor({column}) THEN TRY_CAST({column} AS BIGINT)::VARCHAR END"
            return f"coalesce({whole}, {text})"
        if self.types[name].startswith("DECIMAL"):
            return f"regexp_replace({text}, '[.]0+$', '')"
        if _is_number(self.types[name]):
            return text
        clean = clean_id(text)
        if name in self.reading.get("whole", ()):
            clean = f"regexp_replace({clean}, '^([+-]?[0-9]+)[.]0+$', '\\1')"
        return clean

    def _text(self, name: str) -> str:
        """Return SQL of a column as text; NULL for a missing value.

        Raises:
            SourceError: the column has lists or structures.
        """
        if name != "image":
            self._require_no_parts(name)
        return f"CASE WHEN NOT {is_missing(f'{name}::VARCHAR')} THEN {name}::VARCHAR END"

    def _is_empty(self, name: str) -> str:
        if self.types[name] in _FLOATS:
            return f'"{name}" IS NULL OR isnan("{name}")'
        text = f'"{name}"::VARCHAR'
        missing = is_missing(text) if name in ("user", "item", "parent", "timestamp") else f"{text} = ''"
        return f'"{name}" IS NULL OR {missing}'

    def _empty(self, name: str) -> str:
        return f"WHEN {self._is_empty(name)} THEN {literal(f'{self.names[name]} is empty')}"

    def _not(self, name: str, fits: str, kind: str) -> str:
        text = literal(f"{self.names[name]} is not {kind}: ")
        return f"WHEN NOT coalesce({fits}, false) THEN {text} || left({name}::VARCHAR, 40)"

    def _details(self) -> str:
        """Return SQL of the list of "name: value" of the columns of `details`, without empty values."""
        cells = []
        for name in self.names:
            prefix, _, label = name.partition(f"{DETAILS}.")
            if prefix or not label:
                continue
            is_list = self.types[name].endswith("]") and self.types[name].count("[") == 1
            text = f"array_to_string(\"{name}\", ', ')" if is_list else f'"{name}"::VARCHAR'
            if not is_list:
                self._require_no_parts(name)
            present = f"CASE WHEN NOT {is_missing(text)} THEN trim({text}) END"
            cells.append(f"{literal(label)} || ': ' || {present}")
        return f"list_filter([{', '.join(cells)}]::VARCHAR[], lambda t: t IS NOT NULL)"

    def _price(self) -> tuple[str, str]:
        """Return SQL of the price, and of a text that is no price."""
        if PRICE not in self.names:
            return "NULL::DOUBLE", "NULL::VARCHAR"
        self._require_text_or(PRICE, *_NUMBERS)
        if _is_number(self.types[PRICE]):
            return "price::DOUBLE", "NULL::VARCHAR"
        price = f"price_of(trim(price), {literal(self.reading.get('point') or '')})"
        return price, f"CASE WHEN ({price}) IS NULL THEN left({self._text('price')}, 40) END"

    @property
    def images(self) -> str:
        """SQL of the list of photos."""
        if "image" not in self.names:
            return "[]::VARCHAR[]"
        kind = self.types["image"]
        if "BLOB" in kind:
            raise SourceError(
                f"column {self.names['image']!r} has the type {kind}: the photos are inside of the table. Write each "
                "into a file, name it in the column, and set `photos` in [datasets.<name>.source] of pixrec.toml; "
                "if they are URLs, write the column as text"
            )
        has_parts = kind.endswith("]") or kind.startswith(("STRUCT", "MAP"))
        text = "to_json(image)::VARCHAR" if has_parts else self._text("image")
        images = f"cell_images({text})"
        if separator := self.reading.get("image_separator"):
            images = f"string_split({text}, {literal(separator)})"
        clean = f"trim(x, ',;|' || {QUOTES} || {BLANKS})"
        urls = f"list_transform({images}, lambda x: as_url({clean}, {str(self.has_photos).lower()}))"
        known = f"list_filter({urls}, lambda x: NOT {is_missing('x')})"
        other = f"CASE WHEN coalesce(names_nothing({text}), true) THEN [] ELSE [left({text}, 200)] END"
        return f"coalesce(list_transform([{known}], lambda k: CASE WHEN len(k) > 0 THEN k ELSE {other} END)[1], [])"

    def _list(self, name: str) -> tuple[str, list[str]]:
        """Return SQL of a list of texts, and of its faults."""
        if name not in self.names:
            return "[]::VARCHAR[]", []
        kind = self.types[name]
        if kind.endswith("]"):
            has_parts = kind.count("]") > 1 or "(" in kind.replace("DECIMAL(", "").replace("ENUM(", "")
            texts = f"json_texts(to_json({name})::VARCHAR)" if has_parts else f"{name}::VARCHAR[]"
            return f"coalesce(list_filter({texts}, lambda t: t <> ''), [])", []
        self._require_text_or(name, *_NUMBERS)
        separator = self.reading.get("separator")
        text = self._text(name)
        parts = f"list_transform(string_split({text}, {literal(separator)}), lambda t: trim(t))"
        split = f"list_filter({parts}, lambda t: t <> '')"
        other = split if separator else f"CASE WHEN NOT starts_with(trim({text}), '[') THEN [{text}] END"
        is_json = f"json_valid({text}) AND json_type({text}) = 'ARRAY'"
        texts = f"list_filter(json_texts({text}), lambda t: t <> '')"
        notation = f"WHEN is_notation({text}) THEN parts({text})"
        column = f"CASE WHEN {text} IS NULL THEN [] WHEN {is_json} THEN {texts} {notation} ELSE {other} END"
        return column, [self._not(name, f"({column}) IS NOT NULL", "a list in JSON")]

    def _require_no_parts(self, name: str) -> None:
        if self.types[name].endswith("]") or self.types[name].startswith(("STRUCT", "MAP", "UNION")):
            raise self._type_error(name)

    def _require_text_or(self, name: str, *kinds: str) -> None:
        kind = self.types[name]
        if kind.endswith("]") or not kind.startswith(("VARCHAR", "ENUM", "JSON", '"NULL"', *kinds)):
            raise self._type_error(name)

    def _type_error(self, name: str) -> SourceError:
        return SourceError(
            f"column {self.names[name]!r} has the type {self.types[name]}, which cannot be read as `{name}`; map "
            "another column in [datasets.<name>.source] of pixrec.toml, or write it as text"
        )


def _is_number(kind: str) -> bool:
    return kind.startswith(_NUMBERS) and not kind.endswith("]")


def clean_id(text: str) -> str:
    """Return SQL of an id without the blanks around it, in the Unicode form NFC.

    The condition is much faster than the functions, and few ids fulfil it.
    """
    unclean = f"{text} < '!' OR right({text}, 1) <= ' ' OR strlen({text}) <> length({text})"
    return f"CASE WHEN {unclean} THEN trim(nfc_normalize({text}), {BLANKS}) ELSE {text} END"


def is_missing(text: str) -> str:
    """Return SQL of whether a text is empty, blank or stands for a missing value."""
    return f"regexp_full_match({text}, {_MISSING})"
