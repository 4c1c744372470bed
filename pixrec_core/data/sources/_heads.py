"""The first rows of tables: what they say about how the values are to be read, and how they look when they are."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import duckdb

from pixrec_core.data import raw_lines
from pixrec_core.data.database import literal
from pixrec_core.data.id_mismatch import explain_mismatch
from pixrec_core.data.raw_table import fetch_row
from pixrec_core.data.sources import _mapping, _times
from pixrec_core.data.sources._csv import HEADER_BYTES, CsvFormat, load_head, read_layout
from pixrec_core.data.sources._mapped_columns import WHOLE, MappedColumns, is_missing
from pixrec_core.data.sources._parquet import damaged_error, is_parquet, parquet_header, scan_parquet
from pixrec_core.errors import SourceError
from pixrec_core.printable import printable

HEAD_ROWS: Final = 32_768  # rows of a file that decide
SHOWN_ROWS: Final = 1000
SHOWN_VALUES: Final = 3
#: Columns of a product export of Shopify: the id of a variant, and of its product.
SHOPIFY: Final = ("Variant SKU", "Handle")

#: Largest whole number up to which all are exact, by type.
_EXACT: Final = {"FLOAT": 2**24, "DOUBLE": 2**53}
_SET: Final = "in [datasets.<name>.source] of pixrec.toml"


@dataclass(frozen=True)
class Head:
    """The first rows of a table.

    Attributes:
        paths: its files.
        others: files of its folder that are left out.
        db: a cursor, with its own time zone.
        rows: SQL of the first rows of the first and the last file, under our names.
        types: DuckDB's types of the columns by our names.
        mapping: the mapped columns.
        layouts: of the files that are CSV.
        header: names of the columns of the first file.
    """

    paths: Sequence[Path]
    others: Sequence[Path]
    db: duckdb.DuckDBPyConnection
    rows: str
    types: Mapping[str, str]
    mapping: _mapping.Mapping
    layouts: Sequence[CsvFormat]
    header: Sequence[str]

    @property
    def name(self) -> str:
        """The first file, for messages."""
        return str(self.paths[0])

    @property
    def kept(self) -> str:
        """SQL of the first rows that the filter keeps, which decide."""
        return f"FROM ({self.rows}) WHERE keep" if "keep" in self.types else self.rows

    def count(self, *expressions: str, where: str = "true") -> tuple[Any, ...]:
        """Return the values of aggregate expressions over the first rows that the filter keeps."""
        return fetch_row(self.db, f"SELECT {', '.join(expressions)} FROM ({self.kept}) WHERE {where}")  # noqa: S608

    def first(self, name: str, where: str = "true") -> str:
        """Return the first value of a column, not empty, as text; "" if there is none."""
        found = self.db.execute(
            f'SELECT "{name}"::VARCHAR FROM ({self.kept}) WHERE "{name}"::VARCHAR <> \'\' AND ({where}) LIMIT 1'  # noqa: S608
        ).fetchall()
        return found[0][0] if found else ""


@contextmanager
def open_head(
    connection: duckdb.DuckDBPyConnection, path: Path, mapping: _mapping.Mapping, first: int
) -> Iterator[Head]:
    """Read the first rows of the files of a table, which are a file, a folder or the matches of a pattern.

    Those of CSV files are in the tables `parsed_<first>` and `parsed_<first + 1>`.

    Raises:
        SourceError: a file is missing, empty, damaged, no table, or lacks a column.
    """
    paths = raw_lines.list_files(path)
    with TemporaryDirectory(prefix="pixrec-") as folder, connection.cursor() as db:
        db.execute("SET TimeZone = 'UTC'")
        layouts: list[CsvFormat] = []
        numeric: list[dict[str, bool | None]] = []
        scans: list[str] = []
        header: list[str] = []
        for number, file in enumerate(dict.fromkeys((paths[0], paths[-1])) if paths else [path], first):
            raw_lines.require_content(file)
            mapping = mapping.of_file(file)
            if is_parquet(file):
                header = header or parquet_header(db, file)
                scans.append(f"({scan_parquet(db, file, mapping)} LIMIT {HEAD_ROWS})")
                continue
            work = Path(folder) / str(number)
            work.mkdir()
            layout, mapping, found = _load_csv(db, file, mapping, work, number)
            layouts.append(layout)
            numeric.append(found)
            header = header or list(layout.header)
            scans.append(f"(FROM parsed_{number} LIMIT {HEAD_ROWS})")
        if numeric:
            kinds = {name: [each[name] for each in numeric if each.get(name) is not None] for name in numeric[0]}
            mapping = replace(mapping, numbers=[name for name, found in kinds.items() if found and all(found)])
        rows = " UNION ALL BY NAME ".join(scans)
        try:
            with mapping.reporting_where(paths[0]):
                types = {name: kind for name, kind, *_ in db.execute(f"DESCRIBE {rows}").fetchall()}
                head = Head(paths, raw_lines.other_files(path), db, rows, types, mapping, layouts, header)
                (count,) = fetch_row(db, f"SELECT count(*) FROM ({rows})")  # noqa: S608
        except duckdb.Error as error:
            raise damaged_error(paths[0], error) from error
        if not count:
            raise SourceError(f"{paths[0]} has no row below its header; name a file that has")
        for file in paths[1:-1]:
            _check_header(db, file, mapping, Path(folder))
        yield head


def _load_csv(
    db: duckdb.DuckDBPyConnection, file: Path, mapping: _mapping.Mapping, folder: Path, number: int
) -> tuple[CsvFormat, _mapping.Mapping, dict[str, bool | None]]:
    """Load the first rows into `parsed_<number>`.

    Returns:
        Their layout; the mapping with what the header adds; and if there is a filter whether the values of each column
        are numbers, None without a value.
    """
    is_numeric: dict[str, bool | None] = {}
    layout = load_head(db, file, replace(mapping, where=None), folder, number)
    product = {"parent": SHOPIFY[1]} if mapping.names.get("item") == SHOPIFY[0] and SHOPIFY[1] in layout.header else {}
    mapping = replace(mapping, names={**product, **mapping.names})
    if mapping.where:
        every = {name: name for name in layout.header if layout.header.count(name) == 1 and name}
        unfiltered = _mapping.Mapping(every, delimiter=layout.delimiter, encoding=mapping.encoding)
        load_head(db, file, unfiltered, folder, number)
        numbers = ", ".join(
            f"bool_and(TRY_CAST({column} AS DOUBLE) IS NOT NULL) FILTER ({column} <> '')"
            for column in map(_mapping.quoted, every)
        )
        is_numeric = dict(zip(every, fetch_row(db, f"SELECT {numbers} FROM parsed_{number}"), strict=True))  # noqa: S608
        mapping = replace(mapping, numbers=[name for name, found in is_numeric.items() if found])
    if product or mapping.where:
        load_head(db, file, replace(mapping, delimiter=layout.delimiter), folder, number)
    return layout, mapping, is_numeric


def _check_header(db: duckdb.DuckDBPyConnection, file: Path, mapping: _mapping.Mapping, folder: Path) -> None:
    """Raise SourceError for a file that is no table or lacks a column."""
    mapping = replace(mapping.of_file(file), where=None)
    if is_parquet(file):
        mapping.check(file, parquet_header(db, file))
    else:
        read_layout(file, mapping, folder, HEADER_BYTES)


@dataclass
class Decisions:
    """What the first rows decide: entries of `RawFiles.reading`, and notes for the user on what was assumed."""

    reading: dict[str, Any]
    notes: list[str]


def decide(interactions: Head, items: Head, options: Any, *, has_photos: bool) -> Decisions:
    """Decide how the values of both tables are read.

    `has_photos` is whether an image that is not a URL is the path of a local photo.

    Raises:
        SourceError: it is not clear what the times or images are, or a column has a type that cannot be read.
    """
    reading = options.model_dump(mode="json", exclude={"interactions", "items", "photos"}, exclude_none=True)
    notes = [note for head in (interactions, items) for note in _notes_on_files(head, options.delimiter)]
    for head, table in ((interactions, "interaction"), (items, "item")):
        reading[f"{table}_numbers"] = list(head.mapping.numbers)
        reading[f"{table}_columns"] |= head.mapping.names
    if items.mapping.names.get("parent") and not options.item_columns.parent:
        notes.append(f"note: {items.name} is an export of Shopify: rows with the same {SHOPIFY[1]!r} are one product")
    interactions.db.execute(f"SET TimeZone = {literal(options.time_zone)}")
    reading["time"], reading["strict"], more = _time_form(interactions, options)
    reading["whole"], whole = _whole_ids(interactions, items)
    notes += [*more, *whole, *_rounded_ids(interactions, items)]
    if items.types.get("price") == "VARCHAR":
        reading["point"], more = _decimal_point(items, options.decimal)
        notes += more
    columns = MappedColumns(items.mapping.names, items.types, reading, has_photos)
    columns.items()  # raises for a type that cannot be read
    if "image" in items.types:
        notes += _notes_on_images(items, columns, has_photos=has_photos)
    return Decisions(reading, notes)


def _notes_on_files(head: Head, delimiter: str | None) -> Iterator[str]:
    if len(head.paths) > 1:
        yield f"note: {len(head.paths)} files, from {head.paths[0]} to {head.paths[-1]}"
    if head.others:
        names = ", ".join(repr(file.name) for file in head.others[:5])
        yield f"warning: {len(head.others)} other files of the folder are left out, such as {names}; the run continues"
    for layout in head.layouts:
        if layout.delimiter != (delimiter or ","):
            yield f"note: {layout.path}: cells are separated by {layout.delimiter!r}, as the header shows"
        if layout.escape != '"':
            yield f"note: {layout.path}: quotes in cells are written with {layout.escape!r} before them"
        if layout.lines > 1 and layout.skip > 1:
            yield f"note: {layout.path}: the header is on line {layout.skip + 1}, and the lines above it are left out"
        if layout.encoding:
            doubt = "; set `encoding` if these letters are wrong" if layout.encoding == "cp1252" else ""
            yield f"note: {layout.path} is not UTF-8 but {layout.encoding}, and is read as such{doubt}"
    for theirs, found in head.mapping.resolved(head.header).items():
        if theirs != found:
            yield f"note: {head.name}: the column {theirs!r} is called {found!r} there"


def _time_form(head: Head, options: Any) -> tuple[str, bool, list[str]]:
    """Return the form of the times, whether to reject times that do not look like it, and notes."""
    column, names = head.mapping.names["timestamp"], _times.NAMES
    if _times.is_typed(head.types["timestamp"]):
        return _times.TYPED, False, []
    present = f"NOT {is_missing('timestamp::VARCHAR')}"
    total, *found = head.count("count(*)", *(f"count(*) FILTER ({_times.looks_like(f)})" for f in names), where=present)
    looks = dict(zip(names, found, strict=True))
    likely = max(looks, key=lambda form: looks[form])
    first = head.first("timestamp", present)
    if not total:
        raise SourceError(
            f"{head.name}: the column {column!r} has no time in its first rows; map another column {_SET}"
        )
    given = options.time_unit or options.time_format
    if given:
        try:
            (fits,) = head.count(f"count({_times.milliseconds(given)})", where=present)
        except duckdb.Error as error:
            raise SourceError(f"`time_format` {_SET} is not a format: {str(error).partition(chr(10))[0]}") from error
        if fits:
            return given, False, []
    is_clear = looks[likely] >= _times.SURE * total
    if is_clear and not given and likely in _times.COMPACT:
        (dates,) = head.count(f"count(*) FILTER ({_times.is_likely(_times.COMPACT[likely])})", where=present)
        if dates >= _times.SURE * total:
            return _times.COMPACT[likely], False, _notes_on_times(head, _times.COMPACT[likely], first)
    if is_clear and not given:
        return likely, True, _notes_on_times(head, likely, first)
    formats = [] if is_clear else _times.fitting_formats(head.db, f"FROM ({head.kept}) WHERE {present}", _times.SURE)
    guess = f'`time_unit = "{likely}"`' if is_clear else " or ".join(f'`time_format = "{form}"`' for form in formats)
    if given:
        raise SourceError(
            f"{head.name}: {column!r} ({head.types['timestamp']}) has {first!r}, which is not {_times.name_of(given)}; "
            + (f"it looks like {guess}: set that" if guess else "correct `time_unit` or `time_format`")
            + f" {_SET}"
        )
    if len(formats) == 1:
        return formats[0], False, _notes_on_times(head, formats[0], first)
    if formats:
        raise SourceError(
            f"{head.name}: the times in {column!r} are not clear: {first!r} can be {' or '.join(formats)}. "
            f"Set {guess} {_SET}"
        )
    shares = ", ".join(f"{count:,} look like {names[form]}" for form, count in looks.items() if count)
    other = head.first("timestamp", f"{present} AND NOT coalesce({_times.looks_like(likely)}, false)")
    shares += f", and {other!r} does not look like {names[likely]}" if shares else "none is in a known form"
    raise SourceError(
        f"{head.name}: the times in {column!r} are not clear: the first of {total:,} is {first!r}; {shares}. Set "
        "`time_unit` (s, ms, us, ns, excel, iso) or `time_format` (such as "
        f'"%d.%m.%Y %H:%M") {_SET}, or correct the values'
    )


def _notes_on_times(head: Head, form: str, first: str) -> list[str]:
    notes = []
    if form != "iso":
        time = f"any_value({_times.shown(_times.milliseconds(form))})"
        (read,) = head.count(time, where=f"timestamp::VARCHAR = {literal(first)}")
        shown = f": {first!r} is {read}" if read else ""
        notes.append(f"note: {head.name}: times are in {_times.name_of(form)}{shown}")
    exponent = "regexp_matches(timestamp::VARCHAR, '[0-9][eE][+]?[0-9]')"
    if head.types["timestamp"] == "VARCHAR" and (value := head.first("timestamp", exponent)):
        mantissa, _, power = value.lower().replace(",", ".").partition("e")
        step = 10.0 ** (int(power) - len(mantissa.partition(".")[2])) * _times.UNITS.get(form, (1.0,))[0] / 1000
        notes.append(
            f"warning: {head.name}: times such as {value!r} were rounded by a spreadsheet and are exact only to "
            f"{step:,.0f} seconds, so the order of purchases is partly lost. Format the column as a number and export "
            "it again; the run continues"
        )
    return notes


def _whole_ids(interactions: Head, items: Head) -> tuple[list[str], list[str]]:
    """Return the ids that are whole numbers stored as floats (`4711.0`), and notes.

    The `.0` is left out of user ids if all have it. Item ids must also be numbers on both sides, so that no two become
    equal.
    """

    def counts(head: Head, name: str) -> tuple[int, int, int]:
        text = f'trim("{name}"::VARCHAR)'
        total, whole, digits = head.count(
            "count(*)",
            f"count(*) FILTER (regexp_full_match({text}, {WHOLE}))",
            f"count(*) FILTER (regexp_full_match({text}, '[0-9]+'))",
            where=f"NOT {is_missing(text)}",
        )
        return total, whole, digits

    total, whole, _ = counts(interactions, "user")
    names = ["user"] if total and whole == total and interactions.types["user"] == "VARCHAR" else []
    sides = [counts(interactions, "item"), counts(items, "item")]
    if all(total == whole + digits for total, whole, digits in sides) and any(whole for _, whole, _ in sides):
        names.append("item")
    notes = []
    for name in names:
        head = interactions if name == "user" or sides[0][1] else items
        value = head.first(name, f'regexp_full_match("{name}"::VARCHAR, {WHOLE})')
        notes.append(
            f"note: {head.name}: ids in {head.mapping.names[name]!r} are whole numbers stored as floats: {value!r} is "
            f"read as {value.strip().partition('.')[0]!r}"
        )
    return names, notes


def _rounded_ids(interactions: Head, items: Head) -> Iterator[str]:
    """Yield warnings of ids that a spreadsheet has rounded, such as `4.00638E+12`."""
    for head in (interactions, items):
        for name in sorted({"user", "item"} & head.types.keys()):
            if limit := _EXACT.get(head.types[name]):
                (largest,) = head.count(f'max("{name}")', where=f'NOT isnan("{name}")')
                if largest is not None and largest > limit:
                    yield (
                        f"warning: {head.name}: ids in {head.mapping.names[name]!r} are stored as {head.types[name]}, "
                        f"which is exact only up to {limit:,}, so different ones may have become equal: the largest is "
                        f"{largest:,.0f}. Write them as text or whole numbers; the run continues"
                    )
            if head.types[name] == "VARCHAR" and (
                value := head.first(name, f"regexp_full_match(\"{name}\", '[0-9][.,]?[0-9]*[eE][+][0-9]+')")
            ):
                yield (
                    f"warning: {head.name}: ids in {head.mapping.names[name]!r} such as {value!r} were rounded by a "
                    "spreadsheet, so different ones have become equal. Format the column as text and export it again; "
                    "the run continues"
                )


def _decimal_point(head: Head, given: str | None) -> tuple[str, list[str]]:
    """Return the decimal separator of prices, "" if none or both are in use, and notes."""
    digits = "digits(trim(price))"

    def shows(point: str, other: str) -> str:
        last = f"'([0-9]+[{other}])+[0-9]+[{point}][0-9]*|[0-9]*[{point}]([0-9]{{1,2}}|[0-9]{{4,}})|0[{point}][0-9]+'"
        return f"count(*) FILTER (regexp_full_match({digits}, {last}))"

    unclear = f"regexp_full_match({digits}, '[1-9][0-9]{{0,2}}[.,][0-9]{{3}}')"
    points, commas = head.count(shows(".", ","), shows(",", "."))
    point = given or ("." if points and not commas else "," if commas and not points else "")
    notes = []
    if point == "," and not given:
        value = head.first("price", f"contains({digits}, ',')")
        notes.append(f"note: {head.name}: prices have a decimal comma, as in {value!r}")
    if not point and (value := head.first("price", unclear)):
        (price,) = head.count(f"any_value(price_of({literal(value.strip())}, ''))")
        notes.append(
            f"note: {head.name}: the price {value!r} is read as {price:,.0f}: a separator before three digits is "
            "that of thousands; set `decimal` if it is not"
        )
    return point, notes


def _notes_on_images(head: Head, columns: MappedColumns, *, has_photos: bool) -> list[str]:
    column = head.mapping.names["image"]
    images = columns.images
    urls = f"len(list_filter({images}, lambda x: regexp_matches(x, '(?i)^https?://')))"
    cells, with_url, several = head.count(
        f"count(*) FILTER (len({images}) > 0)", f"count(*) FILTER ({urls} > 0)", f"count(*) FILTER ({urls} > 1)"
    )
    if cells and not with_url and not has_photos:
        value = head.first("image", f"len({images}) > 0")[:100]
        fix = f"if these are files, set `photos` {_SET} to their folder; if they are parts of URLs, write whole URLs"
        if re.match("[a-z][a-z0-9+.-]+:", value):
            fix = f"only http and https are read: write the photos into files, and set `photos` {_SET} to their folder"
        raise SourceError(f"{head.name}: {column!r} has no URL but {value!r}; {fix}")
    if several:
        value = head.first("image", f"{urls} > 1")[:100]
        note = f"{several:,} of {cells:,} cells of {column!r} name several photos; the first that works is used"
        return [f"note: {head.name}: {note}: {value!r}"]
    return []


def preview(interactions: Head, items: Head, found: Decisions, *, has_photos: bool) -> Iterator[str]:
    """Yield lines that show both tables as they are read: layout, mapping with sample values, ids of both sides."""
    ids: list[list[str]] = []
    for title, head, select, rows in (
        ("interactions", interactions, MappedColumns.interactions, SHOWN_ROWS),
        ("items", items, MappedColumns.items, HEAD_ROWS),
    ):
        sql = select(MappedColumns(head.mapping.names, head.types, found.reading, has_photos))
        head.db.execute(f"CREATE TEMP TABLE shown AS SELECT {sql} FROM (FROM ({head.rows}) LIMIT {rows}) AS raw")  # noqa: S608
        kind = f"CSV, cells separated by {head.layouts[0].delimiter!r}" if head.layouts else "Parquet"
        yield f"{title}: {head.name} ({kind}), columns: {', '.join(map(printable, head.header))}"
        yield from _shown_columns(head)
        yield f"  {_shown_counts(head)}"
        good = "SELECT DISTINCT item FROM shown WHERE fault IS NULL AND dropped IS NULL"
        ids.append([item for (item,) in head.db.execute(good).fetchall()])
    matched = len(set(ids[0]) & set(ids[1]))
    yield (
        f"ids: {matched:,} of {len(ids[0]):,} items of these interactions are among these {len(ids[1]):,} items: "
        f"{_quoted(ids[0])} and {_quoted(ids[1])}"
    )
    if matched < len(ids[0]) / 2 and "likely cause" in (cause := explain_mismatch(ids[0], ids[1])):
        yield f"warning: {cause}"


def _shown_columns(head: Head) -> Iterator[str]:
    """Yield a line per mapped column: values in the file and, where they differ in form, as they are read."""
    read = {"timestamp": _times.shown("timestamp"), "price": "price"}
    read |= {"image": "image_urls[1]", "in_stock": "in_stock"}
    for ours, theirs in head.mapping.names.items():
        values = head.db.execute(f'SELECT "{ours}"::VARCHAR FROM ({head.rows}) LIMIT {SHOWN_VALUES}').fetchall()  # noqa: S608
        shown = [repr(value)[:60] for (value,) in values]
        if ours in read:
            results = head.db.execute(f"SELECT {read[ours]} FROM shown LIMIT {SHOWN_VALUES}").fetchall()  # noqa: S608
            shown = [
                text if result is None or str(result) == value else f"{text} = {printable(str(result))}"
                for text, (value,), (result,) in zip(shown, values, results, strict=True)
            ]
        yield f"  {ours} <- {theirs!r}: {', '.join(shown)}"


def _shown_counts(head: Head) -> str:
    rows = head.db.execute(
        "SELECT coalesce(dropped, fault), count(*) FROM shown GROUP BY 1 ORDER BY 1 NULLS FIRST"
    ).fetchall()
    return f"the first {sum(n for _, n in rows):,} rows: " + ", ".join(f"{n:,} {why or 'good'}" for why, n in rows)


def _quoted(ids: Sequence[str]) -> str:
    return ", ".join(map(repr, sorted(ids)[:SHOWN_VALUES])) or "none"
