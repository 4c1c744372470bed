"""The sequences stage agrees with plain Python, and rejects invalid inputs."""

import json
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixrec_core.data import contract
from pixrec_core.data.sequences import Histories, build_sequences, read_items, read_measured_sequences, read_sequences
from pixrec_core.errors import ArtefactError, ContractError, MissingArtefactError
from pixrec_core.evaluation.leaks import read_checked_sequences
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import (
    CATALOGUE_SCHEMA,
    CUT_SCHEMA,
    FILTERED_SCHEMA,
    IMAGE_SCHEMA,
    ITEM_SCHEMA,
    SEQUENCE_SCHEMA,
    SPLITS,
)
from pixrec_core.settings import SequenceSettings
from tests.core.data.plain_filters import Histories as Events
from tests.core.data.plain_filters import core, usable
from tests.core.data.sequence_inputs import Row, small, write_inputs

DEFAULTS = SequenceSettings()


@pytest.fixture
def paths(tmp_path):
    return DatasetPaths(tmp_path / "shop")


def table(paths: DatasetPaths, query: str) -> pl.DataFrame:
    with duckdb.connect(paths.sequences, read_only=True) as connection:
        return connection.sql(query).pl()


def expected_rows(histories: Events) -> set[tuple[str, str, tuple[str, ...], bool]]:
    """Return rows of split, user, items, tied; users with one or two items have only a training sequence."""
    found = set()
    for user, events in histories.items():
        held_out = [("train", events[:-2]), ("validation", events[:-1]), ("test", events)]
        for split, part in held_out if len(events) >= 3 else [("train", events)]:
            tied = split != "train" and sum(time == part[-1][0] for time, *_ in events) > 1
            found.add((split, user, tuple(item for *_, item in part), tied))
    return found


@st.composite
def shops(draw):
    row = st.tuples(
        st.sampled_from(["u1", "u2", "u3", "u4", "ü5", "u6", "u7", "u8", "u9"]),
        st.sampled_from("abcdex"),  # x is unknown to the metadata
        st.integers(1, 5),
        st.sampled_from([0.0, 2.0, 5.0, None]),
    )
    rows = draw(st.lists(row, min_size=15, max_size=60))
    wanted = SequenceSettings(
        min_rating=draw(st.sampled_from([0.0, 1.0, 3.0])),
        min_user_interactions=draw(st.sampled_from([1, 1, 2, 3, 5])),
        min_item_interactions=draw(st.integers(1, 4)),
        collapse_repeats=draw(st.booleans()),
        include_cold_items=draw(st.booleans()),
    )
    return rows, wanted


@settings(max_examples=15, deadline=None)
@given(shops())
def test_sequences_agree_with_plain_python(shop):
    rows, wanted = shop
    histories = core(usable(rows, "abcde", wanted), wanted)
    tested = {user for user, events in histories.items() if len(events) >= 3}
    with_interactions = {item for events in histories.values() for *_, item in events}
    with tempfile.TemporaryDirectory() as folder:
        paths = write_inputs(DatasetPaths(Path(folder)), rows, "abcde", {"a": "ok", "b": "failed"})
        candidates = set("abcde") if wanted.include_cold_items else with_interactions
        if len(histories) < 2 or not tested or len(candidates) < 2:
            with pytest.raises(ContractError, match=r"users|items"):
                build_sequences(wanted, paths)
            return
        stats = build_sequences(wanted, paths)
        rows_found = table(paths, "SELECT split, user, items, tied FROM sequences").rows()
        catalogue = read_items(paths)
        read_checked_sequences(paths)  # raises an error if there is a leak
    assert {(split, user, tuple(items), tied) for split, user, items, tied in rows_found} == expected_rows(histories)
    assert len(rows_found) == len(histories) + 2 * len(tested)
    assert wanted.min_user_interactions < 3 or len(tested) == len(histories), (
        "a k-core of three or more keeps only users who are tested"
    )
    trained = [events[:-2] if user in tested else events for user, events in histories.items()]
    train_counts = Counter(item for events in trained for *_, item in events)
    assert catalogue["item"].to_list() == sorted(candidates)
    assert dict(catalogue.select("item", "train_count").iter_rows()) == {n: train_counts[n] for n in candidates}
    assert catalogue.filter("has_image")["item"].to_list() == ["a"] * ("a" in candidates)
    assert stats["items_never_bought"] == 5 - len(with_interactions)
    assert stats["test"]["targets"] == stats["validation"]["targets"] == len(tested)
    assert stats["test"]["users_without_target"] == len(histories) - len(tested)
    n_interactions = stats["profile"]["interactions"]
    assert n_interactions == sum(map(len, histories.values()))
    assert n_interactions + sum(n for name, n in stats.items() if name.startswith("dropped_")) == len(rows)
    assert stats["users_left_out"] == len({user for user, *_ in rows}) - len(histories)


def test_every_number_of_a_small_dataset(paths):
    rows: list[Row] = [
        ("anna", "a", 10, 5.0),
        ("anna", "b", 10, 5.0),
        ("anna", "b", 20, 4.0),
        ("anna", "a", 30, 3.0),  # a repeat target: already in the history
        ("bert", "c", 7, 5.0),
        ("bert", "a", 5, 5.0),
        ("bert", "x", 6, 5.0),  # unknown
        ("bert", "d", 9, 1.0),  # rated low
        ("bert", "e", 9, None),  # a cold target, tied only with a filtered row
        ("cleo", "a", 1, 5.0),  # too few interactions to be tested
        ("cleo", "f", 2, 5.0),  # in the catalogue nevertheless
        ("dora", "x", 1, 5.0),  # no interaction is left
    ]
    write_inputs(paths, rows, "abcdef", {"a": "ok", "b": "ok", "e": "failed"})
    held_out = {
        "interactions": 2,
        "targets": 2,
        "interactions_after_target": 0,
        "interactions_without_history": 0,
        "users_without_history": 0,
        "users_without_target": 1,  # cleo
    }
    profiled = {
        **dict.fromkeys(("users", "train_users"), 3),
        **dict.fromkeys(("validation_users", "test_users"), 2),
        "items": 5,
        "interactions": 9,
        "pairs": 7,
        "density": 7 / 15,  # anna with a, b, bert with a, c, e and cleo with a, f, of 3 x 5
        "image_coverage": 0.4,
        "share_tied_test": 0.0,
        "share_cold_test_targets": 0.5,
        "share_repeat_test_targets": 0.5,
        "history_min": 2,
        "history_median": 2,
        "history_p90": 3,
        "history_p99": 3,
        "history_max": 3,
    }
    assert build_sequences(SequenceSettings(min_rating=2), paths) == {
        "balance": {
            "read": 12,
            "kept": 9,
            "rejected": {},
            "dropped": {"with items that the items file lacks": 2, "with a rating below `min_rating`": 1},
        },
        "split": "leave_one_out",
        "cuts": {},
        "profile": profiled,
        "users_seen": 4,
        "items_seen": 6,
        "dropped_unknown_item": 2,
        "dropped_low_rating": 1,
        "dropped_repeat": 0,
        "dropped_rare_item": 0,
        "dropped_short_user": 0,
        "k_core_rounds": 0,
        "users_left_out": 1,
        "measured_users": 2,
        "items_never_bought": 1,
        "validation": held_out,
        "test": held_out,
    }
    assert read_sequences(paths, "train").rows() == [
        ("anna", ["a", "b"], [10, 10], False),
        ("bert", ["a"], [5], False),
        ("cleo", ["a", "f"], [1, 2], False),
    ]
    assert read_sequences(paths, "validation").rows() == [
        ("anna", ["a", "b", "b"], [10, 10, 20], False),
        ("bert", ["a", "c"], [5, 7], False),
    ]
    assert read_sequences(paths, "test")["items"].to_list() == [["a", "b", "b", "a"], ["a", "c", "e"]]
    assert Histories(paths).of("cleo") == Histories(paths).of("\u200bcleo ") == (["a", "f"], [1, 2])


def test_filters_run_until_none_deletes_a_row(paths):
    """Item x is rare; without it u4 is too short; then d is rare; then u1 has two consecutive a, which become one."""
    histories = {"u1": "adabc", "u2": "abc", "u3": "cba", "u4": "dxb"}
    rows: list[Row] = [(u, i, t + 1, 5.0) for u, events in histories.items() for t, i in enumerate(events)]
    write_inputs(paths, rows, "abcdx", {})
    stats = build_sequences(
        SequenceSettings(min_user_interactions=3, min_item_interactions=2, collapse_repeats=True), paths
    )
    assert table(paths, "SELECT items FROM sequences WHERE split = 'test' ORDER BY user")["items"].to_list() == [
        ["a", "b", "c"],
        ["a", "b", "c"],
        ["c", "b", "a"],
    ]
    assert (stats["dropped_rare_item"], stats["dropped_short_user"], stats["dropped_repeat"]) == (2, 2, 1)
    assert stats["k_core_rounds"] == 3


def test_tables_have_their_schemas(paths):
    build_sequences(DEFAULTS, small(paths))
    assert read_items(paths).schema == CATALOGUE_SCHEMA
    assert table(paths, "FROM interactions").schema == FILTERED_SCHEMA
    assert table(paths, "FROM sequences").schema == SEQUENCE_SCHEMA
    assert table(paths, "FROM cuts").schema == CUT_SCHEMA
    for split in SPLITS:
        found = read_sequences(paths, split)
        assert found.columns == ["user", "items", "timestamps", "tied"]
        assert found["user"].to_list() == ["u1", "u2", "u3"]


def test_held_out_interactions_are_not_in_train(paths):
    build_sequences(DEFAULTS, small(paths))
    train = table(paths, "SELECT user, items FROM sequences WHERE split = 'train' ORDER BY user").rows()
    assert train == [("u1", ["a", "b"]), ("u2", ["b", "c"]), ("u3", ["c"])]


@pytest.mark.parametrize("split", ["leave_one_out", "time"])
def test_measured_users_are_drawn_and_most_stay_when_users_come(paths, split, caplog):
    def draw(users: int, most: int) -> set[str]:
        rows: list[Row] = [(f"u{u}", "abcd"[t], 1000 + t, 5.0) for u in range(users) for t in range(4)]
        with caplog.at_level("INFO"):
            wanted = SequenceSettings(split=split, test_users=most)
            stats = build_sequences(wanted, write_inputs(paths, rows, "abcd", {}))
        measured, tested = read_measured_sequences(paths), read_sequences(paths, "test")
        assert tested.height == users, "all users are in the file"
        assert stats["measured_users"] == measured.height
        assert measured.equals(tested.filter(pl.col("user").is_in(measured["user"].implode())))
        assert read_checked_sequences(paths)["test"].equals(measured)
        return set(measured["user"])

    before, after = draw(100, 40), draw(110, 40)
    assert len(before) == len(after) == 40
    assert "40 of 110 test users are drawn to be measured" in caplog.text
    assert len(before & after) > 30, "expected are 36, by chance 15"
    assert len(draw(100, 100)) == len(draw(100, 0)) == 100
    assert before != {f"u{u}" for u in range(40)}


def test_row_order_of_the_inputs_does_not_matter(paths, tmp_path):
    build_sequences(DEFAULTS, small(paths))
    shuffled = small(DatasetPaths(tmp_path / "shuffled"))
    for path in (shuffled.items, shuffled.interactions, shuffled.images_manifest):
        pl.read_parquet(path).reverse().write_parquet(path)
    build_sequences(DEFAULTS, shuffled)
    for name in ("items", "interactions", "sequences"):
        assert table(paths, f"FROM {name}").equals(table(shuffled, f"FROM {name}"))


def test_item_ids_may_be_in_any_script(paths):
    ids = ["a'b", 'say "hi"', "日本", "🙂", "%_\\", "x" * 5000]
    rows: list[Row] = [(user, item, t + 1, 5.0) for user in ("user", "NULL") for t, item in enumerate(ids)]
    build_sequences(DEFAULTS, write_inputs(paths, rows, ids, {}))
    assert read_sequences(paths, "test")["items"].to_list() == [ids, ids]


@pytest.mark.parametrize("folder", ["a[b]c", "star*", "it's", "ünï code"])
def test_special_characters_in_folder_names(tmp_path, folder):
    paths = small(DatasetPaths(tmp_path / folder))
    assert build_sequences(DEFAULTS, paths)["profile"]["users"] == 3


def test_a_rejected_file_does_not_replace_the_valid_one(paths):
    build_sequences(DEFAULTS, small(paths))
    old = paths.sequences.read_bytes()
    bad = pl.read_parquet(paths.interactions).with_columns(rating=pl.lit(7.5))
    bad.write_parquet(paths.interactions)
    with pytest.raises(ContractError) as raised:
        build_sequences(DEFAULTS, paths)
    assert "interactions_with_impossible_rating: observed 11, expected 0" in str(raised.value)
    assert str(paths.sequences_rejected) in str(raised.value)
    assert paths.sequences.read_bytes() == old
    assert table(DatasetPaths(paths.root), "SELECT max(rating) FROM interactions").item() == 5
    with duckdb.connect(paths.sequences_rejected, read_only=True) as connection:
        assert connection.sql("SELECT min(rating) FROM interactions").fetchall() == [(7.5,)]
    failed = [c["name"] for c in json.loads(paths.contract("sequences").read_text()) if not c["passed"]]
    assert failed == ["interactions_with_impossible_rating"]

    build_sequences(DEFAULTS, small(paths))
    assert not paths.sequences_rejected.exists()
    assert all(c["passed"] for c in json.loads(paths.contract("sequences").read_text()))


def with_column(path: Path, **columns: pl.Expr) -> None:
    pl.read_parquet(path).with_columns(**columns).write_parquet(path)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda p: with_column(p.interactions, rating=pl.lit(float("nan"))), "interactions_with_impossible_rating"),
        (
            lambda p: with_column(p.interactions, timestamp=pl.col("timestamp") - 1000),
            "interactions_with_impossible_time",
        ),
        (lambda p: with_column(p.interactions, timestamp=pl.lit(None, pl.Int64)), "interactions_with_nulls"),
        (lambda p: with_column(p.interactions, user=pl.lit(None, pl.String)), "interactions_with_nulls"),
        (lambda p: with_column(p.interactions, position=pl.lit(1), timestamp=pl.lit(9)), "interactions_out_of_order"),
        (lambda p: with_column(p.items, item=pl.col("item").replace("b", "a")), "items_with_repeated_id"),
        (lambda p: with_column(p.items, item=pl.lit("elsewhere")), "dropped_unknown_item 11"),
        (lambda p: pl.DataFrame(schema=ITEM_SCHEMA).write_parquet(p.items), "items: observed 0, expected at least 2"),
    ],
)
def test_invalid_inputs_are_rejected(paths, change, rule):
    change(small(paths))
    with pytest.raises(ContractError, match=rule):
        build_sequences(DEFAULTS, paths)
    assert not paths.sequences.exists()


def test_a_dataset_without_photos_is_a_warning(paths, caplog):
    small(paths)
    pl.DataFrame(schema=IMAGE_SCHEMA).write_parquet(paths.images_manifest)
    build_sequences(DEFAULTS, paths)
    assert "warning: 0 % of items have a photo (50 % or more is usual)" in caplog.text
    assert not read_items(paths)["has_image"].any()


@pytest.mark.parametrize("name", ["items", "interactions", "images_manifest"])
def test_errors_name_missing_and_damaged_inputs(paths, name):
    path = getattr(small(paths), name)
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(ArtefactError, match=path.name):
        build_sequences(DEFAULTS, paths)
    path.unlink()
    with pytest.raises(MissingArtefactError, match=path.name):
        build_sequences(DEFAULTS, paths)


def test_files_of_a_killed_run_are_removed(paths):
    small(paths)
    partial = paths.root / ".sequences.duckdb.partial"
    for suffix in ("", ".wal"):
        partial.with_name(partial.name + suffix).write_bytes(b"half a page")
    spill = partial.with_name(partial.name + ".spill")
    spill.mkdir()
    (spill / "block").write_bytes(b"half")
    build_sequences(DEFAULTS, paths)
    left = {path.name for path in paths.root.iterdir()}
    assert left == {"items.parquet", "interactions.parquet", "images.parquet", "sequences.duckdb", "contract"}


def test_a_reader_does_not_block_a_build(paths):
    build_sequences(DEFAULTS, small(paths))
    with duckdb.connect(paths.sequences, read_only=True) as reader:
        build_sequences(SequenceSettings(min_user_interactions=4), paths)
        assert reader.sql("SELECT count(*) FROM sequences").fetchall() == [(9,)]
    assert len(read_sequences(paths, "test")) == 2


def test_open_histories_keep_their_file_and_later_readers_see_the_new_one(paths):
    build_sequences(DEFAULTS, small(paths))
    opened = Histories(paths)
    assert (opened.of("u2")[0], opened.of("nobody")) == (list("bcea"), ([], []))
    rows: list[Row] = [(user, item, time, 5.0) for user in ("u2", "u9") for time, item in enumerate("aecd", 1)]
    build_sequences(DEFAULTS, write_inputs(paths, rows, "abcde", {}))
    assert read_items(paths)["item"].to_list() == list("acde")
    assert [Histories(paths).of(user)[0] for user in ("u2", "u9", "u1")] == [list("aecd"), list("aecd"), []]
    assert Histories(paths).of("u2")[1] == [1, 2, 3, 4]
    assert [opened.of(user)[0] for user in ("u2", "u9", "u1")] == [list("bcea"), [], list("abcd")]


def test_threads_share_histories(paths):
    build_sequences(DEFAULTS, small(paths))
    opened = Histories(paths)
    with ThreadPoolExecutor(4) as pool:
        found = [items for items, _ in pool.map(opened.of, ["u1", "u2", "u3"] * 20)]
    assert found == [list("abcd"), list("bcea"), list("cab")] * 20


def test_readers_report_a_missing_or_damaged_file(paths):
    with pytest.raises(MissingArtefactError, match=r"sequences\.duckdb"):
        read_items(paths)
    paths.root.mkdir()
    paths.sequences.write_bytes(b"not a database" * 1000)
    with pytest.raises(ArtefactError, match=r"sequences\.duckdb"):
        read_sequences(paths, "test")
    with pytest.raises(ArtefactError, match=r"sequences\.duckdb"):
        Histories(paths)
    with pytest.raises(ArtefactError, match=r"sequences\.duckdb"):
        contract.validate_sequences(paths)


def test_the_import_loads_no_heavy_package():
    code = "import sys, pixrec_core.data.sequences as _; print({'great_expectations', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_movielens_agrees_with_polars(shared_data, paths):
    reviews = pl.read_ndjson(shared_data / "movielens-100k" / "reviews.jsonl.gz")
    rows = reviews.select("user_id", "parent_asin", "timestamp", "rating").iter_rows()
    write_inputs(paths, rows, reviews["parent_asin"].unique(), {})
    profile = build_sequences(DEFAULTS, paths)["profile"]
    ordered = reviews.with_row_index("position").sort("user_id", "timestamp", "position")
    histories = ordered.group_by("user_id").agg("parent_asin", "timestamp").sort("user_id")
    train = histories.select(pl.col("parent_asin").list.head(pl.col("parent_asin").list.len() - 2).explode())
    tied = (pl.col("timestamp").list.get(-1) == pl.col("timestamp").list.get(-2)).mean()
    assert read_sequences(paths, "test")["items"].equals(histories["parent_asin"], check_names=False)
    assert (profile["users"], profile["interactions"]) == (943, 100_000)
    assert profile["share_tied_test"] == pytest.approx(histories.select(tied).item())
    assert read_items(paths)["train_count"].sum() == len(train) == 100_000 - 2 * 943
