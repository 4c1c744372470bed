"""What every baseline owes, whichever it is: a new file in the package is tested here without a line."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixrec_core import baselines
from pixrec_core.baselines._item_lists import ItemLists
from pixrec_core.paths import DatasetPaths
from pixrec_core.plugins import load_plugin, plugin_names
from pixrec_core.schemas import RANKING_SCHEMA
from pixrec_core.settings import RetrievalSettings
from tests.core import sequences_file

NAMES = plugin_names("pixrec_core.baselines")
N_ITEMS = 9
CATALOGUE = pl.Series([f"item {i}" for i in range(N_ITEMS)])
LISTS = st.lists(st.lists(st.integers(0, N_ITEMS - 1), min_size=1, max_size=6), min_size=1, max_size=6)


def rank(name, train, histories, depth):
    learned = ItemLists.from_lists(train)
    scorer = load_plugin("pixrec_core.baselines", name).fit(learned, N_ITEMS)
    users = pl.Series([f"user {u}" for u in range(len(histories))])
    lists = ItemLists.from_lists(histories)
    return pl.concat(baselines.rank(scorer, learned, lists, users=users, item_ids=CATALOGUE, depth=depth))


def test_these_are_the_baselines():
    assert NAMES == ["co_occurrence", "memoriser", "popularity", "repeat_last"]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30)
@given(LISTS, LISTS, st.integers(1, N_ITEMS + 2))
def test_lists_are_whole(name, train, histories, depth):
    ranking = rank(name, train, histories, depth)
    assert ranking.schema == RANKING_SCHEMA
    assert ranking.equals(rank(name, train, histories, depth)), "another run gave another order"
    for user, history in enumerate(histories):
        own = ranking.filter(pl.col("user") == f"user {user}")
        assert own["rank"].to_list() == list(range(1, min(N_ITEMS, depth + len(set(history))) + 1))
        assert own["item"].is_unique().all()
        assert own["item"].is_in(CATALOGUE.implode()).all()
        assert own["score"].is_sorted(descending=True)
        assert own["score"].is_finite().all()


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30)
@given(train=LISTS, history=LISTS)
def test_equal_scores_go_by_popularity_then_id(name, train, history):
    ranking = rank(name, train, history, N_ITEMS)
    counts = [sum(items.count(i) for items in train) for i in range(N_ITEMS)]
    for _, tied in ranking.group_by("user", "score"):
        index = [int(item.removeprefix("item ")) for item in tied.sort("rank")["item"]]
        assert index == sorted(index, key=lambda i: (-counts[i], i))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "repeat_last"])
def test_without_information_a_list_is_the_popularity_order(name):
    train = [[3, 4], [3, 4], [3, 5]]
    items = rank(name, train, [[8]], N_ITEMS)["item"].to_list()
    assert items == [f"item {i}" for i in (3, 4, 5, 0, 1, 2, 6, 7, 8)]


@pytest.mark.parametrize("name", NAMES)
def test_batches_do_not_show(name, monkeypatch):
    lists = np.random.default_rng(0).integers(0, N_ITEMS, (40, 4)).tolist()
    whole = rank(name, lists, lists, 5)
    monkeypatch.setattr(baselines, "SCORES_AT_A_TIME", 3 * N_ITEMS)
    assert rank(name, lists, lists, 5).equals(whole)


def test_rank_all_learns_from_training_and_replaces_the_folder(tmp_path):
    bought = {"u": ["a", "b", "c", "d"], "v": ["a", "c", "c", "e"]}
    paths = DatasetPaths.of(tmp_path, "tiny")
    train = [items[:-2] for items in bought.values()]
    sequences_file.write(paths, sequences_file.catalogue(train, "abcde"), sequences_file.sequences(bought))
    paths.baselines.mkdir()
    (paths.baselines / "removed.parquet").touch()

    stats = baselines.rank_all(RetrievalSettings(depth=1), paths)

    assert sorted(p.stem for p in paths.baselines.iterdir()) == NAMES == stats["baselines"]
    assert (stats["users"], stats["items"]) == (2, 5)
    lists = pl.read_parquet(paths.baselines / "popularity.parquet").group_by("user").agg("item").sort("user")
    # Training holds a twice, b and c once: c's other purchases stand in validation and history alone.
    assert lists["item"].to_list() == [["a", "b", "c", "d"], ["a", "b", "c"]]
    newest = pl.read_parquet(paths.baselines / "repeat_last.parquet").filter(pl.col("user") == "v")
    assert newest["item"].to_list() == ["c", "a", "b"]
