"""Times of a table, in whatever form, to milliseconds since 1970: the form is told by a setting or by the values."""

from pathlib import Path
from typing import Final, Literal

import duckdb
import pyarrow as pa

from pixrec_core.errors import SourceError

TimeUnit = Literal["s", "ms", "us", "iso"]

#: Of each unit: the milliseconds in it, and the numbers that look like it: from March 1973 to November 2286.
UNITS: Final = {"s": (1e3, 1e8, 1e10), "ms": (1.0, 1e11, 1e13), "us": (1e-3, 1e14, 1e16)}
NAMES: Final = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "iso": "ISO 8601"}
SURE: Final = 0.99  # share of values that must look alike; real files hold some nonsense

_ISO: Final = r"'\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d([.]\d+)?)?(Z|[+-]\d\d(:?\d\d)?)?)?'"
_NUMBER: Final = "TRY_CAST(timestamp AS DOUBLE)"


def unit_of(db: duckdb.DuckDBPyConnection, path: Path, column: str, given: TimeUnit | None, kind: pa.DataType) -> str:
    """What the column `timestamp` of the table `batch` holds: a unit, or `typed` where the file says so itself.

    Raises:
        SourceError: the values look like no unit, or like several, and the setting says none.
    """
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return "typed"
    if given:
        return given
    looks = {unit: f"count(*) FILTER ({looks_like(unit)})" for unit in NAMES}
    query = f"SELECT count(*), {', '.join(looks.values())} FROM batch WHERE timestamp::VARCHAR <> ''"  # noqa: S608
    (row,) = db.sql(query).fetchall()
    total, counts = row[0], dict(zip(looks, row[1:], strict=True))
    likely = max(counts, key=lambda unit: counts[unit])
    if total == 0 or counts[likely] < SURE * total:
        shares = ", ".join(f"{count:,} like {NAMES[unit]}" for unit, count in counts.items())
        raise SourceError(
            f"{path}: the unit of time in {column!r} is not clear: of its first {total:,} values look {shares}. Set "
            "`time_unit` in [datasets.<name>.source] of pixrec.toml to s, ms, us or iso"
        )
    return likely


def looks_like(unit: str) -> str:
    """SQL: whether a value is written as times of this unit are today."""
    if unit == "iso":
        return f"regexp_full_match(trim(timestamp::VARCHAR), {_ISO})"
    _, low, high = UNITS[unit]
    return f"({_NUMBER} >= {low!r} AND {_NUMBER} < {high!r})"


def milliseconds(unit: str) -> str:
    """SQL of the time; NULL where the value is none in this unit. Without an offset it is UTC."""
    if unit == "typed":
        return "epoch_ms(timestamp::TIMESTAMPTZ)"
    if unit == "iso":
        return f"CASE WHEN {looks_like(unit)} THEN epoch_ms(TRY_CAST(trim(timestamp) AS TIMESTAMPTZ)) END"
    return f"TRY_CAST(floor({_NUMBER} * {UNITS[unit][0]!r}) AS BIGINT)"
