"""The time split agrees with plain Python, and no held-out interaction reaches training under either split."""

import math
import tempfile
from collections import Counter
from datetime import UTC, date, datetime
from pathlib import Path

import duckdb
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixrec_core.data import splits
from pixrec_core.data.sequences import build_sequences, read_cuts, read_items, read_sequences
from pixrec_core.errors import ContractError, SettingsError
from pixrec_core.evaluation.targets import Targets
from pixrec_core.paths import DatasetPaths
from pixrec_core.settings import SequenceSettings
from tests.core.data.plain_filters import Histories, core, usable
from tests.core.data.sequence_inputs import Row, write_inputs
from tests.core.sequences_file import DAY

KNOWN = "abcde"
USERS = ["u1", "u2", "u3", "u4", "ü5"]


@pytest.fixture
def paths(tmp_path):
    return DatasetPaths(tmp_path / "shop")


def day(number: int) -> date:
    """Return the day that starts `number` days after 1970-01-01."""
    return datetime.fromtimestamp(number * DAY / 1000, UTC).date()


def expected_cuts(histories: Histories, wanted: SequenceSettings) -> tuple[int, int] | None:
    """Return the cuts, found by trying every timestamp unless the settings have dates."""
    if wanted.test_from:
        return tuple((d - date(1970, 1, 1)).days * DAY for d in (wanted.validation_from, wanted.test_from))
    times = [time for events in histories.values() for time, *_ in events]

    def latest(share: float, before: float) -> int | None:
        least = math.ceil(share * len(times))
        return max((t for t in times if sum(t <= x < before for x in times) >= least), default=None)

    test = latest(wanted.test_share, math.inf)
    validation = None if test is None else latest(wanted.validation_share, test)
    return None if validation is None else (validation, test)


def expected_sequences(histories: Histories, trained: Histories, cuts: tuple[int, int]) -> dict[tuple[str, str], tuple]:
    """Return (split, user) -> items, timestamps, tied."""
    found = {}
    for user, events in trained.items():
        if events:
            found["train", user] = ([i for *_, i in events], [t for t, *_ in events], False)
    for user, events in histories.items():
        for split, start, end in (("validation", *cuts), ("test", cuts[1], math.inf)):
            history = [event for event in events if event[0] < start]
            later = [event for event in events if start <= event[0] < end]
            if history and later:
                whole = [*history, later[0]]
                tied = sum(time == later[0][0] for time, *_ in events) > 1
                found[split, user] = ([i for *_, i in whole], [t for t, *_ in whole], tied)
    return found


def sequences(paths: DatasetPaths) -> dict[tuple[str, str], tuple]:
    return {
        (split, user): (items, times, tied)
        for split in ("train", "validation", "test")
        for user, items, times, tied in read_sequences(paths, split).rows()
    }


@st.composite
def rows(draw, first_day=1):
    """Draw interactions with ties, duplicates, an unknown item and missing ratings; some days have many."""
    time = st.builds(lambda number, hour: number * DAY + hour, st.integers(first_day, 9), st.sampled_from([0, 0, 1]))
    row = st.tuples(
        st.sampled_from(USERS), st.sampled_from([*KNOWN, "x"]), time, st.sampled_from([0.0, 2.0, 5.0, None])
    )
    return draw(st.lists(row, min_size=15, max_size=60))


@st.composite
def time_settings(draw):
    first = draw(st.integers(2, 7))
    period = {"validation_from": day(first), "test_from": day(draw(st.integers(first + 1, 8)))}
    shares = {name: draw(st.sampled_from([0.05, 0.1, 0.3])) for name in ("validation_share", "test_share")}
    return SequenceSettings(
        split="time",
        min_rating=draw(st.sampled_from([0.0, 1.0])),
        min_user_interactions=draw(st.integers(1, 4)),
        min_item_interactions=draw(st.integers(1, 3)),
        collapse_repeats=draw(st.booleans()),
        **(period if draw(st.booleans()) else shares),
    )


def test_every_number_of_a_small_dataset(paths):
    """Validation starts on day 4 and test on day 6; two of anna's items have day 6."""
    histories = {
        "anna": [("a", 1), ("b", 2), ("c", 4), ("d", 4), ("e", 6), ("a", 6), ("b", 7)],
        "bert": [("b", 3), ("a", 5)],
        "cleo": [("c", 2), ("e", 7)],
        "dora": [("d", 5), ("e", 6)],  # new in validation, so only test has a history
        "emil": [("e", 7)],  # new in test: without a history
        "fred": [("d", 3)],
    }
    rows: list[Row] = [(u, item, number * DAY, 5.0) for u, events in histories.items() for item, number in events]
    write_inputs(paths, rows, KNOWN, dict.fromkeys(KNOWN, "ok"))
    wanted = SequenceSettings(split="time", validation_from=day(4), test_from=day(6), min_item_interactions=2)
    stats = build_sequences(wanted, paths)
    days = {user: [number * DAY for _, number in events] for user, events in histories.items()}
    assert (
        sequences(paths)
        == {  # before day 4, only b occurs twice
            ("train", "anna"): (["b"], [2 * DAY], False),
            ("train", "bert"): (["b"], [3 * DAY], False),
            ("validation", "anna"): (["a", "b", "c"], days["anna"][:3], True),  # d has the same day
            ("validation", "bert"): (["b", "a"], days["bert"], False),
            ("test", "anna"): (["a", "b", "c", "d", "e"], days["anna"][:5], True),
            ("test", "cleo"): (["c", "e"], days["cleo"], False),
            ("test", "dora"): (["d", "e"], days["dora"], False),
        }
    )
    assert dict(read_items(paths).select("item", "train_count").iter_rows()) == dict.fromkeys("acde", 0) | {"b": 2}
    assert stats["cuts"] == {"validation": "1970-01-05T00:00:00+00:00", "test": "1970-01-07T00:00:00+00:00"}
    assert {name: n for name, n in stats.items() if name.startswith("untrained") and n} == {"untrained_rare_item": 3}
    assert stats["validation"] == {
        "interactions": 4,
        "targets": 2,
        "interactions_after_target": 1,
        "interactions_without_history": 1,
        "users_without_history": 1,
        "users_without_target": 2,  # cleo, fred
    }
    assert stats["test"] == {
        "interactions": 6,
        "targets": 3,
        "interactions_after_target": 2,
        "interactions_without_history": 1,
        "users_without_history": 1,
        "users_without_target": 2,  # bert, fred
    }
    assert stats["profile"]["users"] == 6
    assert stats["profile"]["share_cold_test_targets"] == 1


ROWS: list[Row] = [(user, item, number * DAY, 5.0) for user in USERS for number, item in enumerate(KNOWN, start=1)]


@pytest.mark.parametrize(
    ("dates", "messages"),
    [
        ((day(50), day(51)), ["validation_users: observed 0, expected at least 1", "test_users: observed 0"]),
        ((day(1), day(3)), ["train_users: observed 0, expected at least 2", "validation_users: observed 0"]),
    ],
)
def test_cuts_that_leave_a_split_empty_are_rejected_with_the_counts(paths, dates, messages):
    write_inputs(paths, ROWS, KNOWN, {})
    with pytest.raises(ContractError) as raised:
        build_sequences(SequenceSettings(split="time", validation_from=dates[0], test_from=dates[1]), paths)
    for words in (*messages, "relax [sequences] in pixrec.toml"):
        assert words in str(raised.value)
    assert not paths.sequences.exists()


def test_equal_timestamps_have_no_cut(paths):
    write_inputs(paths, [(user, item, DAY, 5.0) for user, item, *_ in ROWS], KNOWN, {})
    with pytest.raises(
        SettingsError, match=r"no cut with 0\.1 of 25 interactions between it and 1970-01-02.*test_from"
    ):
        build_sequences(SequenceSettings(split="time"), paths)


def test_a_cut_does_not_separate_equal_timestamps(paths):
    """Half of all rows have the last day: a share of 0.1 takes all of them."""
    write_inputs(paths, [(u, i, 5 * DAY if t > 2 * DAY else t, r) for u, i, t, r in ROWS], KNOWN, {})
    build_sequences(SequenceSettings(split="time"), paths)
    assert read_cuts(paths) == {"validation": 2 * DAY, "test": 5 * DAY}


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(rows(), time_settings())
def test_the_time_split_agrees_with_plain_python(shop, wanted):
    histories = usable(shop, KNOWN, wanted)
    cuts = expected_cuts(histories, wanted)
    early = {u: [e for e in w if cuts and e[0] < cuts[0]] for u, w in histories.items()}
    trained = core(early, wanted)
    expected = expected_sequences(histories, trained, cuts) if cuts else {}
    users = Counter(split for split, _ in expected)
    items = {item for events in histories.values() for *_, item in events}
    with tempfile.TemporaryDirectory() as folder:
        paths = write_inputs(DatasetPaths(Path(folder)), shop, KNOWN, {"a": "ok", "b": "failed"})
        if users["train"] < 2 or not users["validation"] or not users["test"] or len(items) < 2:
            with pytest.raises((ContractError, SettingsError), match=r"_users: observed|items: observed|no cut"):
                build_sequences(wanted, paths)
            return
        stats = build_sequences(wanted, paths)
        assert sequences(paths) == expected
        assert read_cuts(paths) == dict(zip(("validation", "test"), cuts, strict=True))
        catalogue = dict(read_items(paths).select("item", "train_count").iter_rows())
        Targets.read(paths)
    counts = Counter(item for events in trained.values() for *_, item in events)
    assert catalogue == {item: counts[item] for item in items}
    assert_counts_add_up(stats, len(shop), histories, early, trained)


def assert_counts_add_up(stats, n_rows: int, histories: Histories, early: Histories, trained: Histories) -> None:
    dropped, untrained = (sum(n for k, n in stats.items() if k.startswith(p)) for p in ("dropped_", "untrained_"))
    size = {
        name: sum(map(len, part.values())) for name, part in (("all", histories), ("early", early), ("train", trained))
    }
    held_out = [stats["validation"], stats["test"]]
    assert stats["profile"]["interactions"] == size["all"] == n_rows - dropped
    assert size["train"] == size["early"] - untrained
    assert sum(part["interactions"] for part in held_out) == size["all"] - size["early"]
    for part in held_out:
        kinds = ("targets", "interactions_after_target", "interactions_without_history")
        assert part["interactions"] == sum(part[kind] for kind in kinds)


#: Day of the validation cut in the next test.
HELD_OUT_FROM = 6


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(rows(), rows(first_day=HELD_OUT_FROM), time_settings())
def test_no_interaction_after_the_cut_reaches_training(shop, others, wanted):
    """Training sequences and counts do not depend on interactions after the validation cut."""
    wanted = wanted.model_copy(update={"validation_from": day(HELD_OUT_FROM), "test_from": day(HELD_OUT_FROM + 1)})
    before = [row for row in shop if row[2] < HELD_OUT_FROM * DAY]
    futures = [before + [row for row in shop if row[2] >= HELD_OUT_FROM * DAY], before + others]
    assert training_data(futures[0], wanted) == training_data(futures[1], wanted)


def training_data(shop: list[Row], wanted: SequenceSettings) -> tuple[dict, dict]:
    """Return training sequences and item counts, also of a rejected file."""
    with tempfile.TemporaryDirectory() as folder:
        paths = write_inputs(DatasetPaths(Path(folder)), shop, KNOWN, {})
        try:
            build_sequences(wanted, paths)
        except ContractError:
            paths.sequences_rejected.replace(paths.sequences)
        train = read_sequences(paths, "train")
        counts = read_items(paths).filter(pl.col("train_count") > 0)
    return dict(train.select("user", "items").iter_rows()), dict(counts.select("item", "train_count").iter_rows())


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(rows(), st.lists(st.sampled_from(KNOWN), min_size=10, max_size=10))
def test_no_held_out_item_reaches_training_under_leave_one_out(shop, others):
    """Training sequences and counts do not depend on the last two items of users with three or more."""
    valid = [row for row in shop if row[1] in KNOWN]
    histories = [sorted((r[2], n) for n, r in enumerate(valid) if r[0] == user) for user in {row[0] for row in valid}]
    last = [n for events in histories if len(events) >= 3 for _, n in events[-2:]]
    held_out = dict(zip(last, others, strict=False))
    changed = [(u, held_out.get(n, i), t, r) for n, (u, i, t, r) in enumerate(valid)]
    assert training_data(valid, SequenceSettings()) == training_data(changed, SequenceSettings())


ROWS_PER_USER = [("a", 3), ("b'", 1), ("c", 5), (None, 2), ("é", 1), ("", 1)]


def members(connection, users, table="interactions"):
    return {u for (u,) in connection.execute(f'SELECT DISTINCT "user" FROM {table} WHERE {users}').fetchall()}


@pytest.mark.parametrize(
    ("size", "parts"),
    [
        (100, [{"", "a", "b'", "c", "é", None}]),
        (5, [{"", "a", "b'", None}, {"c"}, {"é"}]),  # rows up to each user: 1, 4, 5, 10, 11
        (1, [{"", None}, {"a"}, {"b'"}, {"c"}, {"é"}, set()]),
    ],
)
def test_every_user_of_any_table_is_in_one_range(monkeypatch, size, parts):
    monkeypatch.setattr(splits, "ROWS_PER_RANGE", size)
    with duckdb.connect() as connection:
        connection.execute("""CREATE TABLE others AS FROM (VALUES ('A'), ('b'), ('zz'), ('日')) AS names ("user")""")
        connection.execute('CREATE TABLE interactions ("user" VARCHAR)')
        assert len(list(splits.user_ranges(connection, "interactions"))) == 1
        for user, n in ROWS_PER_USER:
            connection.executemany("INSERT INTO interactions VALUES (?)", [[user]] * n)
        ranges = list(splits.user_ranges(connection, "interactions"))
        assert [members(connection, users) for users in ranges] == parts
        assert sorted(u for each in ranges for u in members(connection, each, "others")) == ["A", "b", "zz", "日"]


@pytest.mark.parametrize("split", ["leave_one_out", "time"])
def test_sequences_do_not_depend_on_the_ranges(tmp_path, monkeypatch, split):
    wanted = SequenceSettings(split=split, validation_share=0.1, test_share=0.1)
    histories = {"u1": "abcdeabc", "u2": "bcaeda", "it's": "cabcabed", "": "abcd"}
    interactions = [(user, item, 1 + t, 5.0) for user, items in histories.items() for t, item in enumerate(items)]
    found = []
    for size in (100, 1):
        monkeypatch.setattr(splits, "ROWS_PER_RANGE", size)
        paths = write_inputs(DatasetPaths(tmp_path / f"a[b]c star* it's {{{size}}}"), interactions, "abcde", {})
        stats = build_sequences(wanted, paths)
        with duckdb.connect(paths.sequences, read_only=True) as connection:
            tables = ("interactions", "items", "sequences")
            found.append((stats, [connection.sql(f"FROM {table} ORDER BY ALL").fetchall() for table in tables]))
    assert found[0] == found[1]
