"""Hit rates of shown lists, counted by hand."""

import json

import polars as pl
import pytest

from pixrec_core.evaluation.online import measure_online

DAY = 86_400_000


@pytest.fixture
def interactions(tmp_path):
    path = tmp_path / "interactions[1].parquet"
    rows = [
        ("u", "a", 100 * DAY),
        ("u", "b", 103 * DAY),
        ("u", "b", 104 * DAY),
        ("v", "a", 90 * DAY),
        ("v", "c", 120 * DAY),
        ("v", "d", 126 * DAY),
    ]
    pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row").write_parquet(path)
    return path


def line(time, user, items, method="blend"):
    return json.dumps({"time": time, "user": user, "method": method, "promotion": 1, "items": items})


def test_hits_by_method_and_position(tmp_path, interactions):
    lines = [
        line(99 * DAY, "u", ["x", "a", "b"]),  # a after one day, b after four and five: positions 2 and 3
        line(101 * DAY, "u", ["a", "b"]),  # a was bought before it: position 2
        line(95 * DAY, "v", ["a", "c"]),  # a was bought before it, c after 25 days: no hit
        line(99 * DAY, "w", ["a"]),  # another user
        line(99 * DAY, None, ["a"]),
        line(119 * DAY, "v", ["c", "a"], method="ease"),  # position 1
        line(120 * DAY + 1, "v", ["d"], method="ease"),  # a hit, but its seventh day is not over
    ]
    (tmp_path / "shown-1.jsonl").write_text("\n".join(lines[:3]) + "\n")
    (tmp_path / "shown-2.jsonl").write_text("\n".join(lines[3:]) + "\n" + lines[0][:40])  # cut by a crash
    (tmp_path / "shown-3.jsonl").write_text("")
    assert measure_online(tmp_path, interactions, 7) == {
        "lists": 7,
        "lists_without_user": 1,
        "lists_open": 1,
        "unreadable_lines": 1,
        "window_days": 7,
        "until": 126 * DAY,
        "methods": {
            "blend": {"lists": 4, "hits": 2, "hit_rate": 0.5, "hits_by_position": {"2": 2, "3": 1}},
            "ease": {"lists": 1, "hits": 1, "hit_rate": 1.0, "hits_by_position": {"1": 1}},
        },
    }


@pytest.mark.parametrize(
    ("zone", "clock", "hits"),
    [
        ("UTC", (0, 0), 2),  # days: the purchases of the day of the list count, and those of the next day
        ("America/New_York", (5, 4), 2),  # in winter and in summer
        ("UTC", (9, 11), 1),  # hours, of which the first is before that of the list
        ("UTC", (9, 9), 1),  # always the same hour, which is no midnight
    ],
)
def test_a_purchase_of_the_same_day_counts_where_purchases_have_no_time_of_day(tmp_path, zone, clock, hits):
    hour, summer = DAY // 24, 200 * DAY
    rows = [("u", "a", 10 * DAY + clock[0] * hour), ("v", "a", summer + DAY + clock[1] * hour)]
    rows += [("w", "a", 9 * DAY + clock[0] * hour)]  # the day before
    rows += [("x", "a", summer + 8 * DAY + clock[1] * hour)]  # of a time when no list is open
    path = tmp_path / "interactions.parquet"
    pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row").write_parquet(path)
    shown = [line((summer if user == "v" else 10 * DAY) + 10 * hour, user, ["a"]) for user in "uvw"]
    (tmp_path / "shown-1.jsonl").write_text("\n".join(shown) + "\n")
    assert measure_online(tmp_path, path, 7, zone)["methods"]["blend"]["hits"] == hits


def test_without_a_log_there_is_nothing_to_report(tmp_path, interactions):
    measured = measure_online(tmp_path / "none", interactions, 7)
    assert (measured["lists"], measured["methods"]) == (0, {})
