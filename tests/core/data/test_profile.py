"""The profile of sequences: its numbers, and the inconsistencies that it counts."""

import duckdb
import pytest

from pixrec_core.data.profile import profile_sequences

TABLES = """
CREATE TABLE items (item VARCHAR, has_image BOOLEAN, train_count BIGINT);
CREATE TABLE interactions (
    "user" VARCHAR, item VARCHAR, timestamp BIGINT, rating DOUBLE, position BIGINT, ordinal BIGINT,
    split VARCHAR
);
CREATE TABLE sequences (split VARCHAR, "user" VARCHAR, items VARCHAR[], timestamps BIGINT[], tied BOOLEAN);
CREATE TABLE cuts (split VARCHAR, start BIGINT);
"""

BROKEN = (
    "items_without_id",
    "items_with_repeated_id",
    "items_with_wrong_train_count",
    "interactions_with_nulls",
    "interactions_of_unknown_items",
    "interactions_with_impossible_time",
    "interactions_with_impossible_rating",
    "interactions_out_of_order",
    "interactions_of_wrong_split",
    "sequences_with_nulls",
    "sequences_repeated",
    "sequences_of_unknown_split",
    "sequence_items_unknown",
    "users_with_inconsistent_sequences",
    "users_with_overlapping_splits",
)


@pytest.fixture
def connection():
    with duckdb.connect() as opened:
        opened.execute(TABLES)
        yield opened


def test_empty_tables_have_a_profile_of_zeros(connection):
    measured = profile_sequences(connection)
    quantiles = {name: value for name, value in measured.items() if name.startswith("history_")}
    assert quantiles == dict.fromkeys(("history_min", "history_median", "history_p90", "history_p99", "history_max"))
    assert {value for name, value in measured.items() if name not in quantiles} == {0}


def test_every_number_of_a_small_file(connection):
    connection.execute("INSERT INTO items VALUES ('a', true, 2), ('b', false, 1), ('c', true, 0), ('d', true, 0)")
    users = {"u": ["a", "b", "a", "c"], "v": ["a", "b", "a"]}
    for user, items in users.items():
        times = [100 + ordinal for ordinal in range(1, len(items) + 1)]
        split = [*["train"] * (len(items) - 2), "validation", "test"]
        rows = [(user, *row) for row in zip(items, times, [4.0] * 9, range(9), range(1, 9), split, strict=False)]
        connection.executemany("INSERT INTO interactions VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        splits = [("train", user, items[:-2], times[:-2], False), ("validation", user, items[:-1], times[:-1], False)]
        connection.executemany(
            "INSERT INTO sequences VALUES (?, ?, ?, ?, ?)", [*splits, ("test", user, items, times, user == "v")]
        )
    assert profile_sequences(connection) == {
        **dict.fromkeys(BROKEN, 0),
        "users": 2,
        "train_users": 2,
        "validation_users": 2,
        "test_users": 2,
        "items": 4,
        "interactions": 7,
        "pairs": 5,  # u with a, b, c and v with a, b
        "density": 5 / 8,
        "image_coverage": 0.75,
        "share_tied_test": 0.5,  # v
        "share_repeat_test_targets": 0.5,  # v buys `a` again
        "share_cold_test_targets": 0.5,  # u's `c`
        "history_min": 2,
        "history_median": 2,
        "history_p90": 3,
        "history_p99": 3,
        "history_max": 3,
    }


@pytest.mark.parametrize(
    ("timestamps", "positions", "out_of_order"),
    [
        ([1, 2, 3], [1, 2, 3], 0),
        ([1, 1, 1], [1, 2, 3], 0),  # ties resolved by the position
        ([1, 1, 1], [2, 1, 3], 1),
        ([1, 1, 1], [7, 7, 7], 2),  # unresolved ties
        ([3, 2, 1], [1, 2, 3], 2),
        ([1, 2, 3], [3, 2, 1], 0),  # time comes first
    ],
)
def test_the_order_is_time_then_position(connection, timestamps, positions, out_of_order):
    for ordinal, (timestamp, position) in enumerate(zip(timestamps, positions, strict=True), start=1):
        row = ["u", "a", timestamp, 5.0, position, ordinal, "train"]
        connection.execute("INSERT INTO interactions VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    assert profile_sequences(connection)["interactions_out_of_order"] == out_of_order


@pytest.mark.parametrize(
    ("rating", "impossible"), [(0.0, 0), (5.0, 0), (None, 0), (-0.5, 1), (5.01, 1), (float("nan"), 1)]
)
def test_ratings_are_0_to_5_or_null(connection, rating, impossible):
    connection.execute("INSERT INTO interactions VALUES ('u', 'a', 1, ?, 1, 1, 'train')", [rating])
    assert profile_sequences(connection)["interactions_with_impossible_rating"] == impossible


HISTORY = {"items": ["a", "b", "b", "c"], "timestamps": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    ("changed", "unlike"),
    [
        ({}, 0),
        ({"items": ["b", "a", "b", "c"]}, 1),  # the same items in another order
        ({"timestamps": [2, 1, 3, 4]}, 1),
        ({"items": ["b", "a", "b", "c"], "timestamps": [2, 1, 3, 4]}, 1),  # the same pairs in another order
        ({"items": ["a", "b", "c", "b"]}, 1),
        ({"items": ["a", None, "b", "c"]}, 1),
        ({"timestamps": [1, 2, 3, 5]}, 1),
        ({"items": ["a", "b", "b", "c", "c"], "timestamps": [1, 2, 3, 4, 5]}, 1),
        ({"items": ["a", "b", "b"], "timestamps": [1, 2, 3]}, 1),
        ({"items": []}, 1),
        ({"items": None}, 1),
    ],
)
def test_sequences_are_compared_entry_by_entry(connection, changed, unlike):
    """Time split; the first item of the user is in histories only, so the train sequence starts with the second."""
    connection.execute("INSERT INTO cuts VALUES ('validation', 3), ('test', 4)")
    splits = ("history", "train", "validation", "test")
    for ordinal, (item, time, split) in enumerate(zip(*HISTORY.values(), splits, strict=True), start=1):
        row = ["u", item, time, 5.0, ordinal, ordinal, split]
        connection.execute("INSERT INTO interactions VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    connection.execute("INSERT INTO sequences VALUES ('train', 'u', ['b'], [2], false)")
    connection.execute("INSERT INTO sequences VALUES ('validation', 'u', ['a', 'b', 'b'], [1, 2, 3], false)")
    test = HISTORY | changed
    connection.execute("INSERT INTO sequences VALUES ('test', 'u', ?, ?, false)", [test["items"], test["timestamps"]])
    assert profile_sequences(connection)["users_with_inconsistent_sequences"] == unlike


@pytest.mark.parametrize(
    ("places", "out_of_order"),
    [
        ([("u", 1), ("u", 2), ("v", 1)], 0),
        ([("v", 1), ("u", 1), ("u", 2)], 1),
        ([("u", 2), ("u", 1), ("v", 1)], 1),
        ([("u", 1), ("u", 1), ("v", 1)], 1),
    ],
)
def test_interactions_must_be_sorted_by_user_and_place(connection, places, out_of_order):
    for time, (user, ordinal) in enumerate(places, start=1):
        connection.execute("INSERT INTO interactions VALUES (?, 'a', ?, 5.0, 1, ?, 'train')", [user, time, ordinal])
    assert profile_sequences(connection)["interactions_out_of_order"] == out_of_order
