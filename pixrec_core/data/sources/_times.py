"""Times of a table: in which form they are, and SQL that reads them.

A form is the name of a unit (`s`, `ms`, `us`, `ns` since 1970; `excel`, days since 1899-12-30), `iso`, `typed` (dates
and times of Parquet), or a format of strptime, which contains `%`. Times without an offset are in the time zone of the
connection.
"""

from datetime import datetime
from itertools import product
from typing import Final, Literal

import duckdb

from pixrec_core.data.database import literal

TimeUnit = Literal["s", "ms", "us", "ns", "excel", "iso"]

#: Per unit: its milliseconds, and the range of numbers that look like it: for units from March 1973 to November 2286;
#: for Excel from 2000 to 2050.
UNITS: Final = {
    "s": (1e3, 1e8, 1e10),
    "ms": (1.0, 1e11, 1e13),
    "us": (1e-3, 1e14, 1e16),
    "ns": (1e-6, 1e17, 9.2e18),
    "excel": (86_400_000.0, 36_526, 54_789),
}
_EXCEL_DAYS: Final = 2_958_466  # number of the day after 9999-12-31, the last one that Excel knows
NAMES: Final = {
    "s": "seconds",
    "ms": "milliseconds",
    "us": "microseconds",
    "ns": "nanoseconds",
    "excel": "Excel's days",
    "iso": "ISO 8601",
}
SURE: Final = 0.99  # share of the values that must have one form; real files have some nonsense
TYPED: Final = "typed"

#: Offsets of zones that are written as abbreviations; those that mean several zones (CST, IST, BST) are unknown.
_ZONES: Final = {
    "Z": "+00:00", "UTC": "+00:00", "GMT": "+00:00", "WET": "+00:00", "WEST": "+01:00", "CET": "+01:00",
    "CEST": "+02:00", "MEZ": "+01:00", "MESZ": "+02:00", "EET": "+02:00", "EEST": "+03:00", "MSK": "+03:00",
    "JST": "+09:00", "KST": "+09:00", "AEST": "+10:00", "AEDT": "+11:00", "EST": "-05:00", "EDT": "-04:00",
    "CDT": "-05:00", "MST": "-07:00", "MDT": "-06:00", "PST": "-08:00", "PDT": "-07:00",
}  # fmt: skip
#: `plain_time(t)`: a time without what DuckDB and strptime do not know: blanks of other kinds, quotes, a second name of
#: the zone (`+0200 (CEST)`, `[Europe/Berlin]`), abbreviations of zones, a decimal comma, `at` and `Uhr`; the basic form
#: of ISO 8601 becomes the extended one. An unknown abbreviation stays, and no form fits.
MACROS: Final = rf"""
CREATE OR REPLACE MACRO zone_offset(z) AS coalesce(MAP {_ZONES}[z], ' ' || z);
CREATE OR REPLACE MACRO one_zone(t) AS regexp_replace(regexp_replace(regexp_replace(regexp_replace(regexp_replace(
    regexp_replace(t, '[\s\p{{Z}}]+', ' ', 'g'), '^[ ''"]+|[ ''"]+$', '', 'g'), ' ?([(][^)]*[)]|\[[^\]]*\]|Uhr)$', ''),
    '(?:UTC|GMT) ?([+-]\d)', '\1'), '(:\d\d(?:[.,]\d+)? ?[+-]\d\d:?\d\d) [A-Z]{{2,5}}$', '\1'),
    ' at ', ' ');
CREATE OR REPLACE MACRO with_offset(t) AS list_transform([t], lambda x: CASE
    WHEN regexp_matches(x, '(\d|[AaPp][Mm]) ?(Z|[A-Z]{{3,4}})$')
    THEN regexp_extract(x, '^(.*(?:\d|[AaPp][Mm])) ?[A-Z]+$', 1) || zone_offset(regexp_extract(x, '[A-Z]+$'))
    ELSE x END)[1];
CREATE OR REPLACE MACRO plain_time(t) AS regexp_replace(regexp_replace(regexp_replace(regexp_replace(
    with_offset(one_zone(t)), '(:\d\d(?:[.,]\d+)? ?[+-])(\d)$', '\10\2'), '(:\d\d),(\d)', '\1.\2'),
    '(:\d\d(?:[.]\d+)?) ([+-]\d)', '\1\2'), '^(\d{{4}})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)', '\1-\2-\3 \4:\5:\6');
"""

_TEXT: Final = "trim(timestamp::VARCHAR)"
_PLAIN: Final = "plain_time(timestamp::VARCHAR)"
#: Spreadsheets of some countries write a decimal comma.
_NUMBER: Final = "coalesce(TRY_CAST(timestamp AS DOUBLE), TRY_CAST(replace(timestamp::VARCHAR, ',', '.') AS DOUBLE))"
_ISO: Final = (
    r"'\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d([.]\d+)?)?"
    r"( ?(Z|UTC|GMT)|[+-]\d\d(:?\d\d)?| [A-Z][A-Za-z_]+/[A-Za-z_/+-]+)?)?'"
)
_IS_ISO: Final = f"regexp_full_match({_TEXT}, {_ISO})"
_IS_NEARLY_ISO: Final = f"regexp_full_match({_PLAIN}, {_ISO})"

_DATES: Final = (
    "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%Y/%m/%d", "%Y.%m.%d", "%d-%m-%Y", "%m-%d-%Y", "%Y-%m-%d", "%Y%m%d",
    "%d.%m.%y", "%m/%d/%y", "%d/%m/%y", "%d %b %Y", "%d %B %Y", "%d-%b-%Y", "%d-%b-%y", "%b %d, %Y", "%B %d, %Y",
    "%b %d %Y", "%d %b, %Y", "%a, %d %b %Y", "%a %b %d %Y", "%Y年%m月%d日",
)  # fmt: skip
_CLOCKS: Final = (
    "", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p", ", %H:%M", ", %H:%M:%S", ", %I:%M %p",
    ", %I:%M:%S %p", "T%H:%M", "T%H:%M:%S", " %H.%M", " %H%M", "T%H%M%S", "%H%M%S", " %H:%M:%S%z",
    " %H:%M:%S %z", " %H:%M%z", " %I:%M%p", " %I:%M:%S%p", ", %I:%M:%S%p", " %I:%M %p%z", " %I:%M:%S %p%z",
    " %I.%M.%S.%f %p", "-%H.%M.%S.%f",
)  # fmt: skip
_FORMATS: Final = (
    "%a %b %d %H:%M:%S %Y", "%a %b %d %H:%M:%S UTC %Y", "%H:%M %d.%m.%Y", "%H:%M %d/%m/%Y", "%H:%M %Y-%m-%d",
    "%Y%m%d%H%M", "%G-W%V-%u", *map("".join, product(_DATES, _CLOCKS)),
)  # fmt: skip
#: Dates that are whole numbers in the range of a unit, if nearly all values are dates from 1990 to 2100.
COMPACT: Final = {"s": "%Y%m%d%H", "ms": "%Y%m%d%H%M"}
_SEPARATORS: Final = "/.,"  # which no directive of `_FORMATS` matches
_FIRST_ROWS: Final = 20  # Python tries all formats on these: DuckDB would take seconds to plan so many expressions


def looks_like(form: str) -> str:
    """Return SQL of whether a value looks like a time of this form."""
    if form == "iso":
        return f"CASE WHEN {_IS_ISO} THEN true ELSE {_IS_NEARLY_ISO} END"  # OR would evaluate both for every row
    if form not in UNITS:
        return f"({milliseconds(form)}) IS NOT NULL"
    _, low, high = UNITS[form]
    return f"({_NUMBER} >= {low!r} AND {_NUMBER} < {high!r})"


def milliseconds(form: str) -> str:
    """Return SQL of the time in milliseconds since 1970 UTC; NULL for a value that is not a time of this form."""
    if form == TYPED:
        return "epoch_ms(timestamp::TIMESTAMPTZ)"
    if form == "iso":
        # `_PLAIN` stands here once, in a list: DuckDB would plan and compute each occurrence.
        plain = f"CASE WHEN regexp_full_match(t, {_ISO}) THEN TRY_CAST(t AS TIMESTAMPTZ) END"
        exact = f"CASE WHEN {_IS_ISO} THEN TRY_CAST({_TEXT} AS TIMESTAMPTZ) END"
        return f"epoch_ms(coalesce({exact}, list_transform([{_PLAIN}], lambda t: {plain})[1]))"
    if "%" in form:
        return f"epoch_ms({_parsed(form)}::TIMESTAMPTZ)"
    if form == "excel":  # its days have too few digits for milliseconds
        time = f"(TIMESTAMP '1899-12-30' + to_seconds(round({_NUMBER} * 86400)))::TIMESTAMPTZ"
        return f"CASE WHEN {_NUMBER} >= 0 AND {_NUMBER} < {_EXCEL_DAYS} THEN epoch_ms({time}) END"
    factor, _, _ = UNITS[form]
    return f"TRY_CAST(floor({_NUMBER} * {factor!r}) AS BIGINT)"


def is_typed(kind: str) -> bool:
    """Return whether a type of DuckDB is that of dates or times."""
    return kind.startswith(("TIMESTAMP", "DATE")) and not kind.endswith("]")


def shown(time: str) -> str:
    """Return SQL of milliseconds since 1970 as readable text; NULL for a time that DuckDB cannot show."""
    return f"TRY(strftime(make_timestamp_ms({time}), '%Y-%m-%d %H:%M:%S UTC'))"


def is_likely(form: str) -> str:
    """Return SQL of whether a value is a time of a format from 1990 to 2100."""
    return f"coalesce(year({_parsed(form)}) BETWEEN 1990 AND 2100, false)"


def _parsed(form: str) -> str:
    return f"coalesce(try_strptime({_TEXT}, {literal(form)}), try_strptime({_PLAIN}, {literal(form)}))"


def name_of(form: str) -> str:
    """Return a form in words."""
    return f"the format {form}" if "%" in form else NAMES[form]


def fitting_formats(db: duckdb.DuckDBPyConnection, head: str, share: float) -> list[str]:
    """Return the formats that at least `share` of the values have, which must be times from 1990 to 2100.

    Formats that read every value as the same time count once. `head` is SQL of the first rows.
    """
    db.execute(f"CREATE OR REPLACE TEMP TABLE times AS SELECT timestamp FROM ({head})")  # noqa: S608
    first = [text for (text,) in db.execute(f"SELECT {_PLAIN} FROM times LIMIT {_FIRST_ROWS}").fetchall()]  # noqa: S608
    formats = [form for form in _FORMATS if sum(_has_format(text, form) for text in first) > len(first) / 2]
    if formats:
        counts = ", ".join(f"avg({is_likely(form)}::INT)" for form in formats)
        (found,) = db.execute(f"SELECT {counts} FROM times").fetchall()  # noqa: S608
        formats = [form for form, fits in zip(formats, found, strict=True) if fits >= share]
    distinct: list[str] = []
    for form in formats:
        same = " OR ".join(f"NOT bool_or({milliseconds(form)} IS DISTINCT FROM {milliseconds(o)})" for o in distinct)
        if not (same and db.execute(f"SELECT {same} FROM times").fetchall()[0][0]):  # noqa: S608
            distinct.append(form)
    return distinct


def _has_format(text: str, form: str) -> bool:
    # strptime compiles a pattern for each format, which takes milliseconds; most differ from the text in a separator.
    if any((mark in text) != (mark in form) for mark in _SEPARATORS):
        return False
    try:
        datetime.strptime(text, form)  # noqa: DTZ007 - only whether it has the format
    except ValueError:
        return False
    return True
