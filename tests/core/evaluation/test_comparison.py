"""The comparison of two rankings, over lists written by hand."""

from math import log2

import polars as pl
import pytest

from pixrec_core.evaluation.comparison import Comparison, RankedTestSplit, selection_scores
from pixrec_core.evaluation.comparison import compare as compare_methods
from pixrec_core.paths import BaselinePaths, DatasetPaths
from pixrec_core.schemas import RANKING_SCHEMA
from tests.core import sequences_file

ITEMS = "abcdefgh"
BOUGHT = {"u": "abcd", "v": "acba", "w": "abe"}  # targets d, a, e


def answers(paths: BaselinePaths, bought, lists, items=ITEMS) -> RankedTestSplit:
    """Write a split and a ranking: `lists` has one word per user, best item first."""
    catalogue = sequences_file.catalogue([], items)
    dataset = DatasetPaths(paths.root.parents[1])
    sequences_file.write(dataset, catalogue, sequences_file.sequences(bought))
    rows = [(user, rank, item, -float(rank)) for user in bought for rank, item in enumerate(lists[user], 1)]
    paths.root.mkdir(parents=True)
    pl.DataFrame(rows, RANKING_SCHEMA, orient="row").write_parquet(paths.ranking)
    return RankedTestSplit.read(dataset, {"ease": paths.ranking})


@pytest.fixture
def sides(tmp_path):
    """Two folders to write to."""
    return [DatasetPaths(tmp_path / name).baseline("ease") for name in ("old", "new")]


def compare(old: RankedTestSplit, new: RankedTestSplit) -> Comparison | None:
    return compare_methods(old, "ease", new, ["ease"]).get("ease")


def gains(*ranks: int) -> float:
    return sum(1 / log2(1 + rank) for rank in ranks) / len(ranks)


def test_means_and_their_difference_by_hand(sides):
    old = answers(sides[0], BOUGHT, {"u": "dabcefgh", "v": "bcdefgha", "w": "abcdefgh"})  # ranks 1, 8, 5
    new = answers(sides[1], BOUGHT, {"u": "adbcefgh", "v": "abcdefgh", "w": "abcdefgh"})  # ranks 2, 1, 5
    found = compare(old, new)
    assert (found.pairs, found.old, found.new) == (3, pytest.approx(gains(1, 8, 5)), pytest.approx(gains(2, 1, 5)))
    assert found.low == pytest.approx(gains(2) - gains(1))  # all three draws of u
    assert found.high == pytest.approx(gains(1) - gains(8))  # all three draws of v


def test_equal_lists_give_an_interval_of_width_zero(sides):
    lists = {"u": "dabcefgh", "v": "bcdefgha", "w": "abcdefgh"}
    mean = pytest.approx(gains(1, 8, 5))
    assert compare(*[answers(side, BOUGHT, lists) for side in sides]) == Comparison(3, mean, mean, 0, 0)


@pytest.mark.parametrize(
    ("bought", "pairs"),
    [
        ({"u": "abcd", "v": "acbad", "x": "abe"}, 1),  # v bought on, w is gone, x is new
        ({"u": "abce", "v": "acba", "w": "abe"}, 2),  # another target of u
        ({"u": "bacd", "v": "acba", "w": "abe"}, 2),  # the same target of u, after another history
    ],
)
def test_only_users_with_equal_test_sequences_count(sides, bought, pairs):
    old = answers(sides[0], BOUGHT, dict.fromkeys(BOUGHT, ITEMS))
    new = answers(sides[1], bought, dict.fromkeys(bought, ITEMS))
    assert compare(old, new).pairs == pairs


def test_no_user_with_equal_test_sequences(sides):
    old = answers(sides[0], BOUGHT, dict.fromkeys(BOUGHT, ITEMS))
    new = answers(sides[1], {"x": "abcd"}, {"x": ITEMS})
    assert compare(old, new) is None


def test_items_that_only_one_catalogue_has_are_removed(sides):
    old = answers(sides[0], BOUGHT, dict.fromkeys(BOUGHT, "zabcdey"), "abcdeyz")  # without z: ranks 4, 1, 5
    new = answers(sides[1], BOUGHT, dict.fromkeys(BOUGHT, "fgxedcba"), "abcdefgx")  # without f, g and x: 2, 5, 1
    found = compare(old, new)
    assert (found.old, found.new) == (pytest.approx(gains(4, 1, 5)), pytest.approx(gains(2, 5, 1)))


@pytest.mark.parametrize("methods", [["ease", "popularity"], ["blend", "ease", "popularity"]])
def test_few_selection_users_are_joined_by_all_on_whom_no_setting_was_chosen(tmp_path, methods):
    """100 validation users: 50 choose settings, and of the others 10 would be left to choose the method that serves."""
    users = [f"{user:03}" for user in range(100)]
    dataset, ranking = DatasetPaths(tmp_path), tmp_path / "ranking.parquet"
    sequences_file.write(
        dataset, sequences_file.catalogue([], "abc"), sequences_file.sequences(dict.fromkeys(users, "abc"))
    )
    rows = [(user, rank, item, -float(rank)) for user in users for rank, item in enumerate("bca", 1)]
    pl.DataFrame(rows, RANKING_SCHEMA, orient="row").write_parquet(ranking)
    assert selection_scores(dataset, dict.fromkeys(methods, ranking)) == ({"ease": 1.0, "popularity": 1.0}, 50)
