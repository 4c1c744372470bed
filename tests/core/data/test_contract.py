"""The data contract of sequences: every rule is broken once, and the results are reported."""

import json
import os
import shutil
import socket
from datetime import date

import duckdb
import pytest

from pixrec_core.data import contract
from pixrec_core.data.sequences import build_sequences
from pixrec_core.errors import ArtefactError, ContractError, MissingArtefactError
from pixrec_core.paths import DatasetPaths
from pixrec_core.settings import SequenceSettings
from tests.core.data.sequence_inputs import small, write_inputs
from tests.core.sequences_file import DAY

RULES = contract.RULES["sequences"]

#: A statement that breaks each rule in a valid file.
BREAKS = {
    "train_users": "DELETE FROM sequences WHERE user <> 'u1'",
    "validation_users": "DELETE FROM sequences WHERE split = 'validation'",
    "test_users": "DELETE FROM sequences WHERE split = 'test'",
    "items": "DELETE FROM items WHERE item <> 'a'",
    "items_without_id": "UPDATE items SET item = '' WHERE item = 'a'",
    "items_with_repeated_id": "INSERT INTO items SELECT * FROM items WHERE item = 'a'",
    "items_with_wrong_train_count": "UPDATE items SET train_count = train_count + 1 WHERE item = 'a'",
    "interactions_with_nulls": "UPDATE interactions SET timestamp = NULL WHERE user = 'u1' AND ordinal = 2",
    "interactions_of_unknown_items": "UPDATE interactions SET item = 'x' WHERE user = 'u1' AND ordinal = 2",
    "interactions_with_impossible_time": "UPDATE interactions SET timestamp = -1 WHERE user = 'u1' AND ordinal = 1",
    "interactions_with_impossible_rating": "UPDATE interactions SET rating = 5.5 WHERE user = 'u1' AND ordinal = 1",
    "interactions_out_of_order": "UPDATE interactions SET timestamp = 9999 WHERE user = 'u1' AND ordinal = 1",
    "interactions_of_wrong_split": "UPDATE interactions SET split = 'train' WHERE user = 'u1' AND ordinal = 4",
    "sequences_with_nulls": "UPDATE sequences SET items = [NULL, 'b'] WHERE user = 'u1' AND split = 'train'",
    "sequences_repeated": "INSERT INTO sequences SELECT * FROM sequences WHERE user = 'u1'",
    "sequences_of_unknown_split": "INSERT INTO sequences VALUES ('holdout', 'u1', ['a'], [1], false)",
    "sequence_items_unknown": "DELETE FROM items WHERE item = 'b'",
    "users_with_inconsistent_sequences": "DELETE FROM interactions WHERE user = 'u1' AND ordinal = 4",
    "users_with_overlapping_splits": "UPDATE sequences SET items = ['a', 'b', 'c'] "
    "WHERE user = 'u1' AND split = 'train'",
    "image_coverage": "UPDATE items SET has_image = false",
    "share_tied_test": "UPDATE sequences SET tied = true",
    "share_cold_test_targets": "UPDATE items SET train_count = 0",
}


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    built = small(DatasetPaths(tmp_path_factory.mktemp("valid")))
    build_sequences(SequenceSettings(), built)
    return built


@pytest.fixture
def paths(valid, tmp_path):
    shutil.copytree(valid.root, tmp_path, dirs_exist_ok=True)
    return DatasetPaths(tmp_path)


def change(paths: DatasetPaths, statement: str) -> None:
    with duckdb.connect(paths.sequences) as connection:
        connection.execute(statement)


def failed(paths: DatasetPaths) -> set[str]:
    return {result.name for result in contract.validate_sequences(paths) if not result.passed}


def test_every_rule_is_broken_by_a_statement():
    assert list(BREAKS) == [rule.name for rule in RULES]


def test_a_valid_file_passes(paths):
    contract.require_valid_sequences(paths)
    assert failed(paths) == set()


@pytest.mark.parametrize("jump_s", [0, -86_400, 86_400], ids=["no jump", "back", "forward"])
def test_a_file_that_its_stage_accepted_is_not_profiled_again(paths, monkeypatch, jump_s):
    """Unless it was changed since, even if the clock jumped meanwhile."""
    monkeypatch.setattr(contract, "validate_sequences", lambda paths: pytest.fail(f"{paths} is profiled again"))
    contract.require_valid_sequences(paths)
    change(paths, "DELETE FROM items")
    changed = paths.sequences.stat().st_mtime + jump_s
    os.utime(paths.sequences, (changed, changed))
    with pytest.raises(pytest.fail.Exception, match="profiled again"):
        contract.require_valid_sequences(paths)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.severity == "error"], ids=lambda r: r.name)
def test_each_broken_rule_is_an_error_with_its_name(paths, rule):
    change(paths, BREAKS[rule.name])
    with pytest.raises(ContractError, match=rf"\n  {rule.name}: observed \S+, expected {rule.expected}(\n|$)"):
        contract.require_valid_sequences(paths)


@pytest.mark.parametrize("name", ["image_coverage", "share_tied_test"])
def test_doubtful_shares_are_warnings(paths, name):
    change(paths, BREAKS[name])
    assert failed(paths) == {name}
    contract.require_valid_sequences(paths)


def test_cold_targets_are_a_warning(tmp_path):
    rows = [(f"u{n}", item, 1000 + t, 5.0) for n, last in enumerate("def") for t, item in enumerate(f"abc{last}")]
    paths = write_inputs(DatasetPaths(tmp_path), rows, "abcdef", dict.fromkeys("abcdef", "ok"))
    build_sequences(SequenceSettings(), paths)
    assert failed(paths) == {"share_cold_test_targets"}
    contract.require_valid_sequences(paths)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE sequences SET items = ['a'] WHERE user = 'u1' AND split = 'train'",
        "UPDATE sequences SET items = ['b', 'a'] WHERE user = 'u1' AND split = 'train'",
        "UPDATE sequences SET items = [] WHERE user = 'u3' AND split = 'train'",
        "DELETE FROM sequences WHERE user = 'u1' AND split = 'validation'",
    ],
)
def test_each_split_continues_the_previous_one(paths, statement):
    change(paths, statement)
    assert "users_with_overlapping_splits" in failed(paths)


@pytest.fixture
def with_short_users(tmp_path):
    """Users s1 and s2 have one and two interactions; the others have three or more."""
    walks = {"s1": "a", "s2": "bc", "u1": "abcd", "u2": "bcea", "u3": "cab"}
    rows = [(user, item, 1000 + t, 5.0) for user, walk in walks.items() for t, item in enumerate(walk)]
    paths = write_inputs(DatasetPaths(tmp_path), rows, "abcde", dict.fromkeys("abcde", "ok"))
    build_sequences(SequenceSettings(), paths)
    return paths


def test_users_too_short_to_be_tested_hold(with_short_users):
    assert failed(with_short_users) == set()


@pytest.mark.parametrize(
    ("statement", "rule"),
    [
        (
            "UPDATE interactions SET split = 'validation' WHERE user = 's2' AND ordinal = 1",
            "interactions_of_wrong_split",
        ),
        ("UPDATE interactions SET split = 'test' WHERE user = 's1'", "interactions_of_wrong_split"),
        ("UPDATE interactions SET split = 'train' WHERE user = 'u3' AND ordinal = 3", "interactions_of_wrong_split"),
        ("UPDATE sequences SET split = 'test' WHERE user = 's2'", "users_with_overlapping_splits"),
        (
            "INSERT INTO sequences VALUES ('validation', 's2', ['b', 'c'], [1000, 1001], false)",
            "users_with_overlapping_splits",
        ),
        ("DELETE FROM sequences WHERE user = 'u1' AND split <> 'train'", "users_with_inconsistent_sequences"),
        ("DELETE FROM sequences WHERE user = 's1'", "users_with_inconsistent_sequences"),
        (
            "UPDATE sequences SET items = ['a', 'b', 'c'], timestamps = [1000, 1001, 1002] WHERE user = 's2'",
            "users_with_overlapping_splits",
        ),
    ],
)
def test_users_too_short_to_be_tested_only_train(with_short_users, statement, rule):
    change(with_short_users, statement)
    assert rule in failed(with_short_users)


@pytest.fixture(scope="module")
def valid_time_split(tmp_path_factory):
    """The same users with one item per day: three days of training, and one for each held-out split."""
    paths = DatasetPaths(tmp_path_factory.mktemp("timed"))
    rows = [(u, i, t * DAY, 5.0) for u in ("u1", "u2", "u3") for t, i in enumerate("abcde", start=1)]
    write_inputs(paths, rows, "abcde", dict.fromkeys("abcde", "ok"))
    days = {"validation_from": date(1970, 1, 5), "test_from": date(1970, 1, 6)}
    build_sequences(SequenceSettings(split="time", **days), paths)
    return paths


@pytest.mark.parametrize(
    ("statement", "rule"),
    [
        ("UPDATE cuts SET start = start - 1", None),
        (f"UPDATE cuts SET start = start + {DAY} WHERE split = 'test'", "users_with_overlapping_splits"),
        (f"UPDATE cuts SET start = start - {DAY} WHERE split = 'validation'", "users_with_overlapping_splits"),
        ("DELETE FROM cuts", None),  # one item per held-out split and user is also a leave-one-out split
        (
            f"UPDATE sequences SET timestamps = [{DAY}, {4 * DAY}, {3 * DAY}] WHERE user = 'u1' AND split = 'train'",
            "users_with_overlapping_splits",
        ),
        (
            "UPDATE sequences SET items = ['a', 'b', 'd'] WHERE user = 'u1' AND split = 'train'",
            "users_with_inconsistent_sequences",
        ),
        ("DELETE FROM sequences WHERE user = 'u1' AND split = 'train'", "users_with_inconsistent_sequences"),
        ("UPDATE sequences SET timestamps = [] WHERE user = 'u1' AND split = 'test'", "sequences_with_nulls"),
        ("UPDATE interactions SET split = 'train' WHERE ordinal = 4", "interactions_of_wrong_split"),
        ("UPDATE interactions SET split = 'history' WHERE ordinal = 5", "interactions_of_wrong_split"),
    ],
)
def test_the_time_split_is_checked_against_its_cuts(valid_time_split, tmp_path, statement, rule):
    shutil.copytree(valid_time_split.root, tmp_path, dirs_exist_ok=True)
    paths = DatasetPaths(tmp_path)
    assert "share_cold_test_targets" in failed(paths), "item e is in no training sequence"
    change(paths, statement)
    errors = failed(paths) - {"share_cold_test_targets"}
    assert rule in errors if rule else not errors


def test_one_error_lists_all_broken_rules(paths):
    change(paths, BREAKS["interactions_with_impossible_time"])
    change(paths, BREAKS["items_with_repeated_id"])
    with pytest.raises(ContractError) as raised:
        contract.require_valid_sequences(paths)
    message = str(raised.value)
    assert "interactions_with_impossible_time: observed 1, expected 0" in message
    assert "items_with_repeated_id: observed 1, expected 0" in message
    assert str(paths.sequences) in message


def test_all_results_are_written(paths):
    written = json.loads(paths.contract("sequences").read_text())
    results = contract.validate_sequences(paths)
    assert written == [vars(result) for result in results]
    assert written[0] == {
        "name": "train_users",
        "passed": True,
        "observed": 3,
        "expected": "at least 2",
        "severity": "error",
    }
    assert [each["name"] for each in written] == [rule.name for rule in RULES]


def test_a_missing_measurement_fails():
    lowest = {rule.name: rule.low for rule in RULES}
    assert all(result.passed for result in contract.validate_profile("sequences", lowest))
    for value in (None, float("nan")):
        results = contract.validate_profile("sequences", lowest | {"items_without_id": value})
        assert [(r.name, r.observed) for r in results if not r.passed] == [("items_without_id", None)]
    absent = {name: value for name, value in lowest.items() if name != "sequences_repeated"}
    assert [r.name for r in contract.validate_profile("sequences", absent) if not r.passed] == ["sequences_repeated"]


def test_ranges_are_inclusive():
    limits = {rule.name: rule.low if rule.high is None else rule.high for rule in RULES}
    assert all(result.passed for result in contract.validate_profile("sequences", limits))
    over = {name: value + 0.001 for name, value in limits.items()}
    passed = [result.name for result in contract.validate_profile("sequences", over) if result.passed]
    assert passed == ["train_users", "validation_users", "test_users", "items"]


def test_validation_opens_no_connection(monkeypatch, capfd):
    def refuse(*args, **kwargs):
        raise AssertionError(f"connection to {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    contract.validate_profile("sequences", {rule.name: 0 for rule in RULES})
    assert capfd.readouterr() == ("", "")


def test_errors_name_missing_and_incomplete_files(paths):
    change(paths, "DROP TABLE interactions")
    with pytest.raises(ArtefactError, match="interactions"):
        contract.require_valid_sequences(paths)
    paths.sequences.unlink()
    with pytest.raises(MissingArtefactError, match=r"sequences\.duckdb"):
        contract.require_valid_sequences(paths)
