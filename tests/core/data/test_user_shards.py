"""Sequences made by shards of users are those of one machine, row by row, whatever the split, filters and faults."""

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
    """Ties, repeats, low and unset ratings, an item that nobody knows, items and users that get rare in turn."""
    draw = random.Random(seed)
    people = [f"user {n}" for n in range(90)] + ["", "it's", "ünï"]
    return [
        (
            people[int(len(people) * draw.random() ** 1.5)],
            draw.choice(["x", *(f"item {int(60 * draw.random() ** 2)}" for _ in range(9))]),
            draw.randrange(1, 40) * 86_400_000,
            draw.choice([1.0, 3.0, 4.0, 5.0, 5.0, None]),
        )
        for _ in range(1000)
    ]


def shop(root: Path, bought: list[Row]) -> DatasetPaths:
    items = [f"item {n}" for n in range(70)]
    return write_inputs(DatasetPaths(root), bought, items, dict.fromkeys(items[::2], "ok"))


def made(wanted: SequenceSettings, paths: DatasetPaths, engine: Engine) -> tuple[object, dict[str, list[tuple]]]:
    """What the build told or raised, and the rows of all tables, in the order in which they lie."""
    file = paths.sequences
    try:
        told: object = build_sequences(wanted, paths, engine)
    except SettingsError as error:
        return str(error), {}
    except ContractError as error:
        told, file = str(error), paths.sequences_rejected
    with duckdb.connect(file, read_only=True) as connection:
        return told, {table: connection.sql(f"FROM {table}").fetchall() for table in TABLES}


@pytest.mark.parametrize(("split", "least"), [("leave_one_out", 12), ("time", 4)])
def test_the_same_rows_in_the_same_order(tmp_path, monkeypatch, split, least):
    monkeypatch.setattr(user_shards, "ROWS_PER_RANGE", 200)
    wanted = STRICT.model_copy(update={"split": split, "min_item_interactions": least})
    paths = shop(tmp_path, dirty())
    told, tables = made(wanted, paths, LOCAL)
    assert isinstance(told, dict)
    assert told["k_core_rounds"] > 1
    rules = {name: n for name, n in told.items() if name.startswith(("dropped_", "untrained_"))}
    assert all(n > 0 for name, n in rules.items() if "repeat" not in name)
    assert told["dropped_repeat"] > 0
    assert made(wanted, paths, UnrulyEngine(3)) == (told, tables)


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
def test_whatever_is_bought_and_wanted(bought, wanted, workers, seed):
    with tempfile.TemporaryDirectory() as folder:
        paths = write_inputs(DatasetPaths(Path(folder)), bought, KNOWN, {"a": "ok", "b": "failed"})
        assert made(wanted, paths, UnrulyEngine(workers, seed)) == made(wanted, paths, LOCAL)


@pytest.mark.parametrize(
    "spoilt",
    [
        [(None, "item 1", 5, 5.0), (None, "item 2", 6, 5.0), (None, "item 3", 6, 5.0)],
        [("user 1", "item 1", 5, 9.0)],
        [("user 1", "item 1", -5, 5.0)],
    ],
    ids=["nobody", "impossible rating", "no time"],
)
def test_spoilt_rows_are_refused_alike(tmp_path, spoilt):
    paths = shop(tmp_path, dirty() + spoilt)
    told, tables = made(SequenceSettings(), paths, LOCAL)
    assert "break the data contract" in told
    assert made(SequenceSettings(), paths, UnrulyEngine(2)) == (told, tables)


def test_more_workers_than_users(tmp_path):
    paths = shop(tmp_path, [(user, f"item {n}", n + 1, 5.0) for user in ("anna", "bert") for n in range(4)])
    assert made(SequenceSettings(), paths, UnrulyEngine(4)) == made(SequenceSettings(), paths, LOCAL)


def test_folder_names_are_no_patterns(tmp_path):
    paths = shop(tmp_path / "a[b]c star* it's {count}", dirty())
    assert made(SequenceSettings(), paths, UnrulyEngine(2)) == made(SequenceSettings(), paths, LOCAL)


def left(paths: DatasetPaths) -> set[str]:
    return {path.name for path in paths.root.iterdir()}


def test_nothing_is_left_of_the_shards(tmp_path):
    paths = shop(tmp_path, dirty())
    before = left(paths)
    build_sequences(SequenceSettings(), paths, UnrulyEngine(2))
    assert left(paths) == before | {"sequences.duckdb", "contract"}


class Broken(UnrulyEngine):
    """Its workers find no room on their disk."""

    def map_shards(self, function, shards):
        raise ArtefactError("a query failed: No space left on device")


def test_an_error_is_told_as_it_was_and_leaves_nothing(tmp_path):
    paths = shop(tmp_path, dirty())
    before = left(paths)
    with pytest.raises(ArtefactError, match="No space left"):
        build_sequences(SequenceSettings(), paths, Broken(2))
    assert left(paths) - before == {".sequences.duckdb.partial"}, "as with one worker"


def killed_among_shards(root: Path) -> None:
    """End oneself when some of the shards have taken the third step; runs in a process of its own."""

    @dataclass
    class Mortal(UnrulyEngine):
        maps: int = 0

        def map_shards(self, function, shards):
            self.maps += 1
            if self.maps == 3:
                function(shards[0])
                os.kill(os.getpid(), signal.SIGKILL)
            return super().map_shards(function, shards)

    build_sequences(SequenceSettings(), DatasetPaths(root), Mortal(2))


def test_a_killed_run_leaves_nothing_that_the_next_one_trips_over(tmp_path):
    paths = shop(tmp_path, dirty())
    undisturbed = made(SequenceSettings(), paths, LOCAL)
    assert exit_code(killed_among_shards, tmp_path) == -signal.SIGKILL
    assert list(paths.sequences_shards.rglob("*.parquet")), "it was killed in the middle"
    assert made(SequenceSettings(), paths, UnrulyEngine(2)) == undisturbed
    assert not paths.sequences_shards.exists()
