"""What every baseline owes, whichever it is: a new file in the package is tested here without a line."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixrec_core import baselines
from pixrec_core.baselines import _sequence_training
from pixrec_core.baselines._item_lists import ItemLists
from pixrec_core.paths import DatasetPaths
from pixrec_core.plugins import load_plugin, plugin_names
from pixrec_core.schemas import RANKING_SCHEMA
from pixrec_core.settings import RetrievalSettings
from tests.core import photos_folder, sequences_file
from tests.core.baselines.told import told

NAMES = plugin_names("pixrec_core.baselines")
N_ITEMS = 9
CATALOGUE = pl.Series([f"item {i}" for i in range(N_ITEMS)])
LISTS = st.lists(st.lists(st.integers(0, N_ITEMS - 1), min_size=1, max_size=6), min_size=1, max_size=6)


TEXTS = [f"word{i % 4} thing" for i in range(N_ITEMS)]
PHOTOS = np.eye(3)[np.arange(N_ITEMS) % 3]
UNINFORMED = {"repeat_last"}  # it has an order of its own, whatever it learnt


@pytest.fixture(autouse=True, scope="module")
def _short_training():
    """What is owed does not depend on how long a network learns."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_sequence_training, "EPOCHS", 1)
        yield


def rank(name, train, histories, depth, **train_data):
    train_data = told(train, N_ITEMS, validation=[(items, items[0]) for items in train], **train_data)
    fitted = load_plugin("pixrec_core.baselines", name).fit(train_data)
    users = pl.Series([f"user {u}" for u in range(len(histories))])
    lists = ItemLists.from_lists(histories)
    batches = baselines.rank(fitted.score, train_data.train, lists, users=users, item_ids=CATALOGUE, depth=depth)
    return pl.concat(batches)


def test_these_are_the_baselines():
    assert NAMES == [
        "bm25_text", "co_occurrence", "ease", "gru4rec", "image_knn", "markov_chain", "popularity", "recent_popularity",
        "repeat_last", "sasrec",
    ]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(LISTS, LISTS, st.integers(1, N_ITEMS + 2))
def test_lists_are_whole(name, train, histories, depth):
    ranking = rank(name, train, histories, depth, texts=TEXTS, photos=PHOTOS)
    assert ranking.schema == RANKING_SCHEMA
    again = rank(name, train, histories, depth, texts=TEXTS, photos=PHOTOS)
    assert ranking.equals(again), "another run gave another order"
    for user, history in enumerate(histories):
        own = ranking.filter(pl.col("user") == f"user {user}")
        assert own["rank"].to_list() == list(range(1, min(N_ITEMS, depth + len(set(history))) + 1))
        assert own["item"].is_unique().all()
        assert own["item"].is_in(CATALOGUE.implode()).all()
        assert own["score"].is_sorted(descending=True)
        assert own["score"].is_finite().all()


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(train=LISTS, history=LISTS)
def test_equal_scores_go_by_popularity_then_id(name, train, history):
    ranking = rank(name, train, history, N_ITEMS)
    counts = [sum(items.count(i) for items in train) for i in range(N_ITEMS)]
    for _, tied in ranking.group_by("user", "score"):
        index = [int(item.removeprefix("item ")) for item in tied.sort("rank")["item"]]
        assert index == sorted(index, key=lambda i: (-counts[i], i))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in UNINFORMED])
def test_without_information_a_list_is_the_popularity_order(name):
    train = [[3, 4], [3, 4], [3, 5]]
    items = rank(name, train, [[8]], N_ITEMS)["item"].to_list()
    assert items == [f"item {i}" for i in (3, 4, 5, 0, 1, 2, 6, 7, 8)]


@pytest.mark.parametrize("name", NAMES)
def test_batches_do_not_show(name, monkeypatch):
    lists = np.random.default_rng(0).integers(0, N_ITEMS, (40, 4)).tolist()
    whole = rank(name, lists, lists, 5, texts=TEXTS, photos=PHOTOS)
    monkeypatch.setattr(baselines, "SCORES_AT_A_TIME", 3 * N_ITEMS)
    parts = rank(name, lists, lists, 5, texts=TEXTS, photos=PHOTOS)
    assert parts.drop("score").equals(whole.drop("score"))
    assert np.allclose(parts["score"], whole["score"], atol=1e-5)  # sums of another shape round otherwise


@pytest.mark.parametrize("name", NAMES)
def test_no_validation_targets_are_no_obstacle(name):
    train_data = told([[0, 1, 2], [1, 2]], 3)
    fitted = load_plugin("pixrec_core.baselines", name).fit(train_data)
    assert fitted.score(train_data.train).shape == (2, 3)


def test_rank_all_learns_from_training_and_replaces_the_folder(tmp_path):
    bought = {"u": ["a", "b", "c", "d"], "v": ["a", "c", "c", "e"]}
    paths = DatasetPaths.of(tmp_path, "tiny")
    train = [items[:-2] for items in bought.values()]
    sequences_file.write(paths, sequences_file.catalogue(train, "abcde"), sequences_file.sequences(bought))
    photos_folder.write(paths, dict.fromkeys("abcde", "red"))
    paths.baselines.mkdir()
    (paths.baselines / "removed.parquet").touch()

    stats = baselines.rank_all(RetrievalSettings(depth=1), paths)

    assert sorted(p.stem for p in paths.baselines.iterdir()) == NAMES == stats["baselines"]
    assert (stats["users"], stats["items"]) == (2, 5)
    assert set(stats["chosen"]["sasrec"]) == {"dropout", "validation_ndcg@10"}
    assert "popularity" not in stats["chosen"], "it has nothing to choose"
    lists = pl.read_parquet(paths.baselines / "popularity.parquet").group_by("user").agg("item").sort("user")
    # Training holds a twice, b and c once: c's other purchases stand in validation and history alone.
    assert lists["item"].to_list() == [["a", "b", "c", "d"], ["a", "b", "c"]]
    newest = pl.read_parquet(paths.baselines / "repeat_last.parquet").filter(pl.col("user") == "v")
    assert newest["item"].to_list() == ["c", "a", "b"]
