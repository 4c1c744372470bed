"""Sequences built in shards equal those of one process, row by row, for any split, filter and fault."""

import os
import random
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixrec_core.data import user_shards
from pixrec_core.data.sequences import build_sequences
from pixrec_core.engine import LOCAL, Engine
from pixrec_core.errors import ArtefactError, ContractError, SettingsError
from pixrec_core.paths import DatasetPaths
from pixrec_core.settings import SequenceSettings
from tests.core.data.sequence_inputs import Row, write_inputs
from tests.core.data.test_splits import KNOWN, rows, time_settings
from tests.core.data.unruly_engine import UnrulyEngine
from tests.core.forks import exit_code

TABLES = ("interactions", "sequences", "items", "cuts")
STRICT = SequenceSettings(min_rating=2, min_user_interactions=4, min_item_interactions=12, collapse_repeats=True)


def dirty(seed: int = 7) -> list[Row]:
    """Return interactions with ties, repeats, low and missing ratings, unknown items, rare items and short users."""
    draw = random.Random(seed)
    users = [f"user {n}" for n in range(90)] + ["", "it's", "ünï"]
    return [
        (
            users[int(len(users) * draw.random() ** 1.5)],
            draw.choice(["x", *(f"item {int(60 * draw.random() ** 2)}" for _ in range(9))]),
            draw.randrange(1, 40) * 86_400_000,
            draw.choice([1.0, 3.0, 4.0, 5.0, 5.0, None]),
        )
        for _ in range(1000)
    ]


def write_dataset(root: Path, rows: list[Row]) -> DatasetPaths:
    items = [f"item {n}" for n in range(70)]
    return write_inputs(DatasetPaths(root), rows, items, dict.fromkeys(items[::2], "ok"))


def build_and_read(
    wanted: SequenceSettings, paths: DatasetPaths, engine: Engine
) -> tuple[object, dict[str, list[tuple]]]:
    """Return the statistics or the error of the build, and the rows of all tables in their stored order."""
    file = paths.sequences
    try:
        outcome: object = build_sequences(wanted, paths, engine)
    except SettingsError as error:
        return str(error), {}
    except ContractError as error:
        outcome, file = str(error), paths.sequences_rejected
    with duckdb.connect(file, read_only=True) as connection:
        return outcome, {table: connection.sql(f"FROM {table}").fetchall() for table in TABLES}


@pytest.mark.parametrize(("split", "least"), [("leave_one_out", 12), ("time", 4)])
def test_shards_give_the_same_rows_in_the_same_order(tmp_path, monkeypatch, split, least):
    monkeypatch.setattr(user_shards, "ROWS_PER_RANGE", 200)
    wanted = STRICT.model_copy(update={"split": split, "min_item_interactions": least})
    paths = write_dataset(tmp_path, dirty())
    outcome, tables = build_and_read(wanted, paths, LOCAL)
    assert isinstance(outcome, dict)
    assert outcome["k_core_rounds"] > 1
    rules = {name: n for name, n in outcome.items() if name.startswith(("dropped_", "untrained_"))}
    assert all(n > 0 for name, n in rules.items() if "repeat" not in name)
    assert outcome["dropped_repeat"] > 0
    assert build_and_read(wanted, paths, UnrulyEngine(3)) == (outcome, tables)


def leave_one_out_settings() -> st.SearchStrategy[SequenceSettings]:
    return st.builds(
        SequenceSettings,
        min_rating=st.sampled_from([0.0, 3.0]),
        min_user_interactions=st.sampled_from([1, 2, 3, 5]),
        min_item_interactions=st.integers(1, 4),
        collapse_repeats=st.booleans(),
    )


@pytest.mark.slow
@settings(max_examples=4, deadline=None)
@given(rows(), time_settings() | leave_one_out_settings(), st.integers(2, 4), st.integers())
def test_shards_give_the_same_result_for_any_settings(interactions, wanted, workers, seed):
    with tempfile.TemporaryDirectory() as folder:
        paths = write_inputs(DatasetPaths(Path(folder)), interactions, KNOWN, {"a": "ok", "b": "failed"})
        assert build_and_read(wanted, paths, UnrulyEngine(workers, seed)) == build_and_read(wanted, paths, LOCAL)


@pytest.mark.parametrize(
    "invalid",
    [
        [(None, "item 1", 5, 5.0), (None, "item 2", 6, 5.0), (None, "item 3", 6, 5.0)],
        [("user 1", "item 1", 5, 9.0)],
        [("user 1", "item 1", -5, 5.0)],
    ],
    ids=["no user", "impossible rating", "no time"],
)
def test_shards_reject_invalid_rows_with_the_same_error(tmp_path, invalid):
    paths = write_dataset(tmp_path, dirty() + invalid)
    outcome, tables = build_and_read(SequenceSettings(), paths, LOCAL)
    assert "break the data contract" in outcome
    assert build_and_read(SequenceSettings(), paths, UnrulyEngine(2)) == (outcome, tables)


def test_more_workers_than_users(tmp_path):
    paths = write_dataset(tmp_path, [(user, f"item {n}", n + 1, 5.0) for user in ("anna", "bert") for n in range(4)])
    assert build_and_read(SequenceSettings(), paths, UnrulyEngine(4)) == build_and_read(
        SequenceSettings(), paths, LOCAL
    )


def test_special_characters_in_folder_names(tmp_path):
    paths = write_dataset(tmp_path / "a[b]c star* it's {count}", dirty())
    assert build_and_read(SequenceSettings(), paths, UnrulyEngine(2)) == build_and_read(
        SequenceSettings(), paths, LOCAL
    )


def file_names(paths: DatasetPaths) -> set[str]:
    return {path.name for path in paths.root.iterdir()}


def test_files_of_shards_are_removed(tmp_path):
    paths = write_dataset(tmp_path, dirty())
    before = file_names(paths)
    build_sequences(SequenceSettings(), paths, UnrulyEngine(2))
    assert file_names(paths) == before | {"sequences.duckdb", "contract"}


class FullDiskEngine(UnrulyEngine):
    """An engine whose workers have a full disk."""

    def map_shards(self, function, shards):
        raise ArtefactError("a query failed: No space left on device")


def test_an_error_of_a_worker_is_raised_and_its_files_are_removed(tmp_path):
    paths = write_dataset(tmp_path, dirty())
    before = file_names(paths)
    with pytest.raises(ArtefactError, match="No space left"):
        build_sequences(SequenceSettings(), paths, FullDiskEngine(2))
    assert file_names(paths) - before == {".sequences.duckdb.partial"}, "the same as with one worker"


def kill_between_shards(root: Path) -> None:
    """Build, but kill this process when some shards have finished the third step."""

    @dataclass
    class KillingEngine(UnrulyEngine):
        maps: int = 0

        def map_shards(self, function, shards):
            self.maps += 1
            if self.maps == 3:
                function(shards[0])
                os.kill(os.getpid(), signal.SIGKILL)
            return super().map_shards(function, shards)

    build_sequences(SequenceSettings(), DatasetPaths(root), KillingEngine(2))


def test_a_run_after_a_killed_one_gives_the_same_result(tmp_path):
    paths = write_dataset(tmp_path, dirty())
    undisturbed = build_and_read(SequenceSettings(), paths, LOCAL)
    assert exit_code(kill_between_shards, tmp_path) == -signal.SIGKILL
    assert list(paths.sequences_shards.rglob("*.parquet")), "the process was killed between steps"
    assert build_and_read(SequenceSettings(), paths, UnrulyEngine(2)) == undisturbed
    assert not paths.sequences_shards.exists()


HISTORIES = {"u1": "abcdeabc", "u2": "bcaeda", "u3": "cabcabed", "u4": "abcd"}
ROWS_PER_USER = [("a", 3), ("b'", 1), ("c", 5), (None, 2), ("é", 1), ("", 1)]


@pytest.fixture
def connection():
    with duckdb.connect() as opened:
        opened.execute('CREATE TABLE interactions ("user" VARCHAR)')
        for user, n in ROWS_PER_USER:
            opened.executemany("INSERT INTO interactions VALUES (?)", [[user]] * n)
        yield opened


def members(connection, users, table="interactions"):
    return [u for (u,) in connection.execute(f'SELECT DISTINCT "user" FROM {table} WHERE {users}').fetchall()]


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        (100, [{"", "a", "b'", "c", "é", None}]),
        (5, [{"", "a", "b'", None}, {"c"}, {"é"}]),  # rows up to each user: 1, 4, 5, 10, 11
        (1, [{"", None}, {"a"}, {"b'"}, {"c"}, {"é"}, set()]),
    ],
)
def test_every_user_is_in_one_range(connection, monkeypatch, rows, parts):
    monkeypatch.setattr(user_shards, "ROWS_PER_RANGE", rows)
    found = [members(connection, users) for users in user_shards.user_ranges(connection, "interactions")]
    assert [set(part) for part in found] == parts


def test_users_of_another_table_are_in_one_range_too(connection, monkeypatch):
    monkeypatch.setattr(user_shards, "ROWS_PER_RANGE", 1)
    connection.execute("""CREATE TABLE others AS FROM (VALUES ('A'), ('b'), ('zz'), ('日')) AS names ("user")""")
    ranges = list(user_shards.user_ranges(connection, "interactions"))
    assert sorted(u for each in ranges for u in members(connection, each, "others")) == ["A", "b", "zz", "日"]


def test_an_empty_table_is_one_range(connection):
    connection.execute("DELETE FROM interactions")
    assert len(list(user_shards.user_ranges(connection, "interactions"))) == 1


@pytest.mark.parametrize("split", ["leave_one_out", "time"])
def test_sequences_do_not_depend_on_the_ranges(tmp_path, monkeypatch, split):
    wanted = SequenceSettings(split=split, validation_share=0.1, test_share=0.1)
    interactions = [(user, item, 1 + t, 5.0) for user, items in HISTORIES.items() for t, item in enumerate(items)]
    whole, in_ranges = (
        write_inputs(DatasetPaths(tmp_path / name), interactions, "abcde", {}) for name in ("whole", "in_ranges")
    )
    stats = build_sequences(wanted, whole)
    monkeypatch.setattr(user_shards, "ROWS_PER_RANGE", 1)
    assert build_sequences(wanted, in_ranges) == stats
    for table in ("interactions", "items", "sequences"):
        query = f"FROM {table} ORDER BY ALL"
        one, other = (
            duckdb.connect(paths.sequences, read_only=True).sql(query).fetchall() for paths in (whole, in_ranges)
        )
        assert one == other
