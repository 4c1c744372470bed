"""Times as programs write them: the form is found, and the values are right; unclear ones are refused."""

from datetime import datetime
from types import SimpleNamespace

import duckdb
import pytest

from pixrec_core.data.sources import _heads, _times
from pixrec_core.data.sources._mapping import Mapping
from pixrec_core.errors import SourceError

NOON = "2024-05-31 12:30:00"
TIMES = {
    "2024-05-31T12:30:00Z": NOON, "2024-05-31T12:30Z": NOON, "2024-05-31 12:30:00+00": NOON,
    "2024-05-31 12:30:00.000 Z": NOON, "2024-05-31 12:30:00,000": NOON, "2024-05-31T12:30:00.000+0000": NOON,
    "2024-05-31 14:30:00 Europe/Berlin": NOON, "2024-05-31 08:30:00 America/New_York": NOON,
    "2024-05-31 14:30:00 CEST": NOON, "2024-05-31 13:30:00 CET": NOON, "2024-05-31 05:30:00 PDT": NOON,
    "2024-05-31 04:30:00 PST": NOON, "2024-05-31 08:30:00 -0400 EDT": NOON, "2024-05-31 14:30:00 UTC+2": NOON,
    "2024-05-31 14:30:00 GMT+0200": NOON, "2024-05-31T14:30:00+02:00[Europe/Berlin]": NOON,
    "2024-05-31T12:30:00.000Z[UTC]": NOON, "20240531T123000Z": NOON, "20240531T123000": NOON, "20240531123000": NOON,
    "202405311230": NOON, "2024053112": "2024-05-31 12:00:00", "20240531": "2024-05-31 00:00:00",
    "2024-5-31 12:30": NOON, "2024/05/31 12:30:00": NOON, "31.05.2024 12:30 Uhr": NOON, "31.05.2024, 12:30": NOON,
    "31/05/2024 12:30": NOON, "5/31/2024 12:30PM": NOON, "5/31/2024, 12:30:00\u202fPM": NOON,
    "5/31/2024 5:30:00 AM PDT": NOON, "May 31, 2024 at 12:30 PM": NOON, "31.05.2024 14:30 MESZ": NOON,
    "Fri May 31 2024 14:30:00 GMT+0200 (Central European Summer Time)": NOON, "Fri, 31 May 2024 12:30:00 GMT": NOON,
    "Fri May 31 12:30:00 UTC 2024": NOON, "31-MAY-24 12.30.00.000000 PM": NOON, "2024-05-31-12.30.00.000000": NOON,
    "12:30 31.05.2024": NOON, "2024-W22-5": "2024-05-31 00:00:00", "'2024-05-31 12:30:00": NOON,
    "1717158600": NOON, "1717158600,0": NOON, "1717158600.0": NOON, "1717158600000": NOON, "1.7171586E+12": NOON,
    "1,7171586E+12": NOON, "1717158600000000": NOON, "1717158600000000000": NOON, "45443.5208333": NOON,
    "45443,5208333": NOON, "881250949": "1997-12-04 15:55:49", "881250949000": "1997-12-04 15:55:49",
}  # fmt: skip
UNCLEAR = [
    "2024-05-31 12:30:00 CST", "2024-05", "2024", "May 2024", "31. Mai 2024", "240531", "12:30:00", "yesterday",
    "1,717,158,600", "19874",
]  # fmt: skip
OPTIONS = SimpleNamespace(time_unit=None, time_format=None)


@pytest.fixture(scope="module")
def db():
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(_times.MACROS)
        yield connection


def read(db, *values):
    """Return the times in words, as the first rows of a file decide."""
    db.execute("CREATE OR REPLACE TABLE orders (timestamp VARCHAR)")
    db.executemany("INSERT INTO orders VALUES (?)", [[value] for value in values])
    head = _heads.Head(
        ["orders.csv"], [], db, "FROM orders", {"timestamp": "VARCHAR"}, Mapping({"timestamp": "t"}), [], []
    )
    form, _, notes = _heads._time_form(head, OPTIONS)
    rows = db.execute(f"SELECT make_timestamp_ms({_times.milliseconds(form)}) FROM orders").fetchall()
    return [time and str(time) for (time,) in rows], notes


@pytest.mark.parametrize("value", TIMES)
def test_times_are_read(db, value):
    (time,), notes = read(db, value)
    assert time == TIMES[value]
    assert all(str(datetime.fromisoformat(time)) in note for note in notes if "is read" not in note and " is 2" in note)


@pytest.mark.parametrize("value", UNCLEAR)
def test_unclear_times_are_refused_with_the_value(db, value):
    with pytest.raises(SourceError, match=r"Set `time_unit`") as caught:
        read(db, value)
    assert repr(value) in str(caught.value)


def test_the_value_that_differs_is_shown(db):
    with pytest.raises(SourceError, match="19 look like ISO 8601, and 'soon' does not look like ISO 8601"):
        read(db, *["2024-05-31"] * 19, "soon")


@pytest.mark.parametrize("value", ["2024-05-31", "31.05.2024", "45443"])
def test_missing_values_do_not_count(db, value):
    assert read(db, "NaT", " NULL", "\u00a0nan", value)[0] == [None, None, None, "2024-05-31 00:00:00"]


def test_days_of_excel_are_in_the_time_zone_of_the_connection():
    """12:30 in Berlin is 10:30 UTC in summer and 11:30 UTC in winter; absurd numbers are no times."""
    days = ["45443.5208333", "45292.5208333", "1e300", "-1e300", "nan", "inf", "2958466"]
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'Europe/Berlin'")
        db.execute("CREATE TABLE orders AS SELECT unnest($days) AS timestamp", {"days": days})
        found = db.execute(f"SELECT make_timestamp_ms({_times.milliseconds('excel')}) FROM orders").fetchall()
    assert [time and str(time) for (time,) in found] == ["2024-05-31 10:30:00", "2024-01-01 11:30:00", *[None] * 5]
