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

#: Per unit: its milliseconds, the number that is 1970, and the range of numbers that look like it: for units from
#: March 1973 to November 2286; for Excel from 2000 to 2050.
UNITS: Final = {
    "s": (1e3, 0, 1e8, 1e10),
    "ms": (1.0, 0, 1e11, 1e13),
    "us": (1e-3, 0, 1e14, 1e16),
    "ns": (1e-6, 0, 1e17, 9.2e18),
    "excel": (86_400_000.0, 25_569, 36_526, 54_789),
}
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

_TEXT: Final = "trim(timestamp::VARCHAR)"
_NUMBER: Final = "TRY_CAST(timestamp AS DOUBLE)"
_ISO: Final = r"'\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d([.,]\d+)?)?( ?(Z|UTC|GMT)| ?[+-]\d\d(:?\d\d)?( UTC)?)?)?'"
_ISO_VARIANT: Final = (  # DuckDB knows neither a blank before an offset, nor a comma, nor a second name of the zone
    f"replace(replace(replace(CASE WHEN {_TEXT} SIMILAR TO '.*[+-]\\d\\d:?\\d* UTC' THEN replace({_TEXT}, ' UTC', '') "
    f"ELSE {_TEXT} END, ' +', '+'), ' -', '-'), ',', '.')"
)

_DATES: Final = (
    "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%Y/%m/%d", "%Y.%m.%d", "%d-%m-%Y", "%m-%d-%Y", "%Y-%m-%d", "%Y%m%d",
    "%d.%m.%y", "%m/%d/%y", "%d/%m/%y", "%d %b %Y", "%d %B %Y", "%d-%b-%Y", "%d-%b-%y", "%b %d, %Y", "%B %d, %Y",
    "%b %d %Y", "%d %b, %Y", "%a, %d %b %Y", "%a %b %d %Y", "%Y年%m月%d日",
)  # fmt: skip
_CLOCKS: Final = (
    "", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p", ", %H:%M", ", %H:%M:%S", ", %I:%M %p",
    ", %I:%M:%S %p", "T%H:%M", "T%H:%M:%S", " %H.%M", " %H%M", "T%H%M%S", "%H%M%S", " %H:%M:%S %z", " %H:%M:%S %Z",
)  # fmt: skip
_FORMATS: Final = ("%a %b %d %H:%M:%S %Y", *map("".join, product(_DATES, _CLOCKS)))
_FIRST_ROWS: Final = 20  # Python tries all formats on these: DuckDB would take seconds to plan so many expressions


def looks_like(form: str) -> str:
    """Return SQL of whether a value looks like a time of this form."""
    if form == "iso":
        return f"regexp_full_match({_TEXT}, {_ISO})"
    if form not in UNITS:
        return f"({milliseconds(form)}) IS NOT NULL"
    _, _, low, high = UNITS[form]
    return f"({_NUMBER} >= {low!r} AND {_NUMBER} < {high!r})"


def milliseconds(form: str) -> str:
    """Return SQL of the time in milliseconds since 1970 UTC; NULL for a value that is not a time of this form."""
    if form == TYPED:
        return "epoch_ms(timestamp::TIMESTAMPTZ)"
    if form == "iso":
        time = f"coalesce(TRY_CAST({_TEXT} AS TIMESTAMPTZ), TRY_CAST({_ISO_VARIANT} AS TIMESTAMPTZ))"
        return f"CASE WHEN {looks_like(form)} THEN epoch_ms({time}) END"
    if "%" in form:
        return f"epoch_ms(try_strptime({_TEXT}, {literal(form)})::TIMESTAMPTZ)"
    factor, zero, _, _ = UNITS[form]
    number = f"({_NUMBER} - {zero})" if zero else _NUMBER
    return f"TRY_CAST(floor({number} * {factor!r}) AS BIGINT)"


def name_of(form: str) -> str:
    """Return a form in words."""
    return f"the format {form}" if "%" in form else NAMES[form]


def fitting_formats(db: duckdb.DuckDBPyConnection, head: str, share: float) -> list[str]:
    """Return the formats that at least `share` of the values have, which must be times from 1990 to 2100.

    Formats that read every value as the same time count once. `head` is SQL of the first rows.
    """
    db.execute(f"CREATE OR REPLACE TEMP TABLE times AS SELECT timestamp FROM ({head}) WHERE {_TEXT} <> ''")  # noqa: S608
    first = [text for (text,) in db.execute(f"SELECT {_TEXT} FROM times LIMIT {_FIRST_ROWS}").fetchall()]  # noqa: S608
    formats = [form for form in _FORMATS if sum(_has_format(text, form) for text in first) > len(first) / 2]
    if formats:
        counts = ", ".join(
            f"avg(coalesce(year(try_strptime({_TEXT}, {literal(form)})) BETWEEN 1990 AND 2100, false)::INT)"
            for form in formats
        )
        (found,) = db.execute(f"SELECT {counts} FROM times").fetchall()  # noqa: S608
        formats = [form for form, fits in zip(formats, found, strict=True) if fits >= share]
    distinct: list[str] = []
    for form in formats:
        same = " OR ".join(f"NOT bool_or({milliseconds(form)} IS DISTINCT FROM {milliseconds(o)})" for o in distinct)
        if not (same and db.execute(f"SELECT {same} FROM times").fetchall()[0][0]):  # noqa: S608
            distinct.append(form)
    return distinct


def _has_format(text: str, form: str) -> bool:
    try:
        datetime.strptime(text, form)  # noqa: DTZ007 - only whether it has the format
    except ValueError:
        return False
    return True
