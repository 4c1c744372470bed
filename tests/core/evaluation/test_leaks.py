"""Each kind of leak, planted one at a time."""

import polars as pl
import pytest

from pixrec_core.errors import ContractError
from pixrec_core.evaluation.leaks import check_for_leaks
from pixrec_core.schemas import SEQUENCE_SCHEMA, SPLITS
from tests.core import sequences_file

BOUGHT = {"u": ["a", "b", "c", "d"], "v": ["a", "c", "a"]}
CUTS = {"validation": 100, "test": 200}
#: Under these cuts: u has all three splits, v was not there before validation ended, w stopped before it began.
TIMED = [
    ("train", "u", "ab", [10, 99]),
    ("train", "w", "c", [50]),
    ("validation", "u", "abc", [10, 99, 100]),
    ("test", "u", "abcd", [10, 99, 100, 200]),
    ("test", "v", "ca", [199, 201]),
]


def by_split(frame: pl.DataFrame) -> dict[str, pl.DataFrame]:
    return {split: frame.filter(pl.col("split") == split).drop("split") for split in SPLITS}


def timed(rows=TIMED) -> dict[str, pl.DataFrame]:
    return by_split(
        pl.DataFrame(
            [(split, user, list(items), moments, False) for split, user, items, moments in rows],
            schema=SEQUENCE_SCHEMA,
            orient="row",
        )
    )


def with_train_only(items: list[str]) -> pl.DataFrame:
    """The sequences of BOUGHT, and a user t who has only a training sequence."""
    moments = list(range(1, len(items) + 1))
    own = pl.DataFrame([("train", "t", items, moments, False)], schema=SEQUENCE_SCHEMA, orient="row")
    return sequences_file.sequences(BOUGHT).vstack(own)


@pytest.mark.parametrize("items", [["a"], ["c", "a"]])
def test_users_too_short_for_a_test_sequence_pass(items):
    check_for_leaks(by_split(with_train_only(items)), {})


def test_a_longer_training_sequence_needs_a_test_sequence():
    with pytest.raises(ContractError, match=r'Leak in split "train": .* 1 user .* \(t\)'):
        check_for_leaks(by_split(with_train_only(["a", "b", "c"])), {})


@pytest.mark.parametrize("items", [["c"], ["a", "c"]])
def test_a_short_training_sequence_must_match_an_existing_test_sequence(items):
    lists = sequences_file.sequences(BOUGHT)
    planted = (pl.col("split") == "train") & (pl.col("user") == "v")
    leaky = lists.with_columns(pl.when(planted).then(pl.lit(items)).otherwise("items").alias("items"))
    with pytest.raises(ContractError, match=r'Leak in split "train": .* 1 user .* \(v\)'):
        check_for_leaks(by_split(leaky), {})


def test_sequences_without_leaks_pass():
    check_for_leaks(by_split(sequences_file.sequences(BOUGHT)), {})
    check_for_leaks(timed(), CUTS)


@pytest.mark.parametrize(
    ("split", "items"), [("train", ["a", "b", "c"]), ("train", ["b", "a"]), ("validation", ["a", "b", "c", "d"])]
)
def test_held_out_items_are_refused_and_the_user_is_named(split, items):
    lists = sequences_file.sequences(BOUGHT)
    planted = (pl.col("split") == split) & (pl.col("user") == "u")
    leaky = lists.with_columns(pl.when(planted).then(pl.lit(items)).otherwise("items").alias("items"))
    with pytest.raises(
        ContractError, match=rf'Leak in split "{split}": the sequence of 1 user contains held-out items \(u\)'
    ):
        check_for_leaks(by_split(leaky), {})


def test_a_validation_sequence_without_a_test_sequence_is_refused():
    lists = sequences_file.sequences(BOUGHT)
    with pytest.raises(ContractError, match=r'Leak in split "validation": .* 1 user .* \(v\)'):
        check_for_leaks(by_split(lists.filter((pl.col("split") != "test") | (pl.col("user") != "v"))), {})


@pytest.mark.parametrize(
    "planted",
    [
        ("train", "w", "cd", [50, 100]),  # at the cut already
        ("train", "w", "dc", [100, 50]),  # wherever it stands
        ("train", "w", "cd", [50]),  # an item without its time
        ("train", "w", "c", []),
        ("validation", "w", "ca", [50, 99]),  # a target of the training period
        ("validation", "w", "ca", [50, 200]),  # of the test period
        ("validation", "w", "cab", [50, 100, 101]),  # a history that reaches into the split
        ("test", "w", "ca", [50, 199]),
        ("test", "w", "cab", [50, 200, 201]),
    ],
)
def test_items_past_the_cut_are_refused(planted):
    others = [row for row in TIMED if row[:2] != planted[:2]]
    with pytest.raises(ContractError, match=rf'Leak in split "{planted[0]}": .* 1 user .* \(w\)'):
        check_for_leaks(timed([*others, planted]), CUTS)
