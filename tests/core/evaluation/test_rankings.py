import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixrec_core.errors import ArtefactError
from pixrec_core.evaluation.rankings import coverage, listed_ranks, read_ranking, without_seen
from pixrec_core.evaluation.targets import Targets
from pixrec_core.schemas import RANKING_SCHEMA, TEST
from tests.core import sequences_file

ITEMS = "abcdef"
BOUGHT = {"u": "abd", "v": "aca", "w": "bbbf"}
GOOD = {"u": "cadb", "v": "abcd", "w": "bac"}
DEPTH = 2


def targets_of(bought):
    test = sequences_file.sequences(bought).filter(pl.col("split") == TEST).drop("split")
    return Targets.of(sequences_file.catalogue([], ITEMS), test)


def table(lists):
    rows = [(user, rank, item, -float(rank)) for user, items in lists.items() for rank, item in enumerate(items, 1)]
    return pl.DataFrame(rows, RANKING_SCHEMA, orient="row")


@pytest.fixture
def read(tmp_path):
    def read_written(ranking):
        ranking.write_parquet(tmp_path / "r.parquet")
        return read_ranking(tmp_path / "r.parquet", "mine", targets_of(BOUGHT), DEPTH)

    return read_written


def test_ranks_of_targets(read):
    targets, ranking = targets_of(BOUGHT), read(table(GOOD).sample(fraction=1, shuffle=True, seed=1))
    assert listed_ranks(ranking, targets, DEPTH).tolist() == [np.inf, 1, np.inf]
    assert coverage(ranking, targets, 1) == 3 / 6
    kept = without_seen(ranking, targets)  # u: c d; v is left out, its target stands in its history; w: a c
    assert listed_ranks(kept, targets, DEPTH).tolist() == [2, np.inf, np.inf]
    assert coverage(kept, targets, 2) == 3 / 6


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (table({"u": GOOD["u"], "v": GOOD["v"]}), "1 test users without a list"),
        (table(GOOD | {"x": "abcd"}), "4 rows of unknown users"),
        (table(GOOD | {"u": "cadz"}), "1 rows of unknown items"),
        (table(GOOD | {"u": "cadd"}), "1 rows that repeat an item"),
        (table(GOOD).filter(~((pl.col("user") == "u") & (pl.col("rank") == 2))), "1 lists with gaps"),
        (table(GOOD).with_columns(rank=pl.col("rank") + 1), "3 lists with gaps"),
        (table(GOOD | {"w": "ba"}), "1 lists shorter than depth 2"),
    ],
)
def test_an_invalid_ranking_is_refused(read, broken, message):
    with pytest.raises(ArtefactError, match=f"ranking of mine .*{message}"):
        read(broken)


def test_other_columns_are_refused(read):
    with pytest.raises(ArtefactError, match=r"ranking of mine.*has columns"):
        read(table(GOOD).drop("score"))


@pytest.mark.parametrize("kept", [0, 9, -9])
def test_a_damaged_file_is_named(tmp_path, kept):
    path = tmp_path / "r.parquet"
    table(GOOD).write_parquet(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ArtefactError, match=r"ranking of mine: .*r\.parquet is damaged \(.*rebuild it"):
        read_ranking(path, "mine", targets_of(BOUGHT), DEPTH)


def test_a_list_need_not_be_longer_than_the_catalogue(tmp_path):
    whole = table(dict.fromkeys(BOUGHT, ITEMS))
    whole.write_parquet(tmp_path / "r.parquet")
    assert read_ranking(tmp_path / "r.parquet", "mine", targets_of(BOUGHT), 100).height == 18


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.sampled_from(ITEMS), min_size=3, max_size=8), st.permutations(ITEMS)), min_size=1),
    st.integers(1, 7),
)
def test_both_protocols_equal_plain_loops(users, depth):
    bought = {f"{u:03}": items for u, (items, _) in enumerate(users)}
    lists = {f"{u:03}": items for u, (_, items) in enumerate(users)}
    targets = targets_of(bought)
    ranking = table(lists).select(
        user_index=pl.col("user").cast(pl.UInt32),
        item_index=pl.col("item").replace_strict(list(ITEMS), range(6), return_dtype=pl.UInt32),
        rank="rank",
    )
    kept = {
        u: [] if items[-1] in items[:-1] else [i for i in lists[u] if i not in items[:-1]]
        for u, items in bought.items()
    }
    for found, expected in ((ranking, lists), (without_seen(ranking, targets), kept)):
        ranks = [
            ranked.index(bought[u][-1]) + 1 if bought[u][-1] in ranked else np.inf for u, ranked in expected.items()
        ]
        assert listed_ranks(found, targets, depth).tolist() == [r if r <= depth else np.inf for r in ranks]
        assert coverage(found, targets, 2) == len({i for ranked in expected.values() for i in ranked[:2]}) / 6
