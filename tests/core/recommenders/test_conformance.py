"""Requirements on every method; a new module of the package is tested here without a further line."""

import json
import os
import shutil
import subprocess
import sys
import tracemalloc

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from pixrec_core import recommenders
from pixrec_core.engine import LOCAL
from pixrec_core.errors import ArtefactError, MissingArtefactError, SettingsError
from pixrec_core.models.encoders.build import build_item_features
from pixrec_core.paths import DatasetPaths
from pixrec_core.plugins import load_plugin
from pixrec_core.recommenders import _sequence_training, base, ease
from pixrec_core.recommenders.base import ItemLists
from pixrec_core.schemas import RANKING_SCHEMA
from pixrec_core.settings import ModelSettings, RetrievalSettings
from tests.core import photos_folder, sequences_file
from tests.core.recommenders.train_data import make_train_data

DEFAULT = recommenders.baseline_names()
NAMES = sorted([*DEFAULT, *recommenders.OFF_BY_DEFAULT])
N_ITEMS = 9
CATALOGUE = pl.Series([f"item {i}" for i in range(N_ITEMS)])
LISTS = st.lists(st.lists(st.integers(0, N_ITEMS - 1), min_size=1, max_size=6), min_size=1, max_size=6)

TEXTS = [f"word{i % 4} thing" for i in range(N_ITEMS)]
PHOTOS = np.eye(3)[np.arange(N_ITEMS) % 3]
CONTENT = {"texts": TEXTS, "text_vectors": np.eye(4)[np.arange(N_ITEMS) % 4], "photos": PHOTOS}
KNOWS_COLD_ITEMS = {"repeat_last"}  # its order does not depend on training


@pytest.fixture(autouse=True, scope="module")
def _short_training():
    """The requirements hold however long a network trains."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_sequence_training, "EPOCHS", 1)
        yield


def fit(name, train, **content):
    validation = [(items, items[0]) for items in train]
    return load_plugin("pixrec_core.recommenders", name).fit(
        make_train_data(train, N_ITEMS, validation=validation, **content)
    )


def rank(name, train, histories, depth, **content):
    users = pl.Series([f"user {u}" for u in range(len(histories))])
    model = fit(name, train, **content)
    return pl.concat(recommenders.rank_users(model, ItemLists.from_lists(histories), users, CATALOGUE, depth))


def test_these_are_the_baselines():
    assert DEFAULT == [
        "bm25_text", "co_occurrence", "ease", "gru4rec", "image_knn", "markov_chain", "popularity",
        "recent_popularity", "repeat_last", "sasrec",
    ]  # fmt: skip
    assert sorted(recommenders.OFF_BY_DEFAULT) == ["semantic_ids"]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(LISTS, LISTS, st.integers(1, N_ITEMS + 2))
def test_rankings_are_complete_and_reproducible(name, train, histories, depth):
    ranking = rank(name, train, histories, depth, **CONTENT)
    assert ranking.schema == RANKING_SCHEMA
    assert ranking.equals(rank(name, train, histories, depth, **CONTENT)), "a second run gives another ranking"
    for user, history in enumerate(histories):
        rows = ranking.filter(pl.col("user") == f"user {user}")
        assert rows["rank"].to_list() == list(range(1, min(N_ITEMS, depth + len(set(history))) + 1))
        assert rows["item"].is_unique().all()
        assert rows["item"].is_in(CATALOGUE.implode()).all()
        assert rows["score"].is_sorted(descending=True)
        assert rows["score"].is_finite().all()


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(train=LISTS, history=LISTS)
def test_equal_scores_are_ordered_by_popularity_then_id(name, train, history):
    ranking = rank(name, train, history, N_ITEMS)
    counts = [sum(items.count(i) for items in train) for i in range(N_ITEMS)]
    for _, tied in ranking.group_by("user", "score"):
        index = [int(item.removeprefix("item ")) for item in tied.sort("rank")["item"]]
        assert index == sorted(index, key=lambda i: (-counts[i], i))


@pytest.mark.parametrize(
    ("name", "history"),
    [(name, history) for name in NAMES for history in ([], [8]) if not (history and name in KNOWS_COLD_ITEMS)],
)
def test_a_history_without_information_gets_the_popularity_order(name, history):
    train = [[3, 4], [3, 4], [3, 5]]
    items, _ = fit(name, train, times=[[0, 0]] * 3).candidates(ItemLists.from_lists([history]), N_ITEMS)
    assert items.tolist() == [[3, 4, 5, 0, 1, 2, 6, 7, 8]]


@pytest.mark.parametrize("name", NAMES)
def test_candidates_are_the_best_scores(name):
    lists = np.random.default_rng(0).integers(0, N_ITEMS, (12, 4)).tolist()
    model, histories = fit(name, lists, **CONTENT), ItemLists.from_lists([*lists, []])
    scores = model.scores(histories)
    assert (scores.shape, scores.dtype) == ((13, N_ITEMS), np.float32)
    items, best = model.candidates(histories, N_ITEMS + 2)
    for user, (row, values) in enumerate(zip(items, best, strict=True)):
        expected = np.lexsort((model.popularity_ranks, -scores[user]))
        assert row.tolist() == [*expected, -1, -1]
        assert np.allclose(values[:N_ITEMS], scores[user, expected], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_candidates_may_be_restricted_to_allowed_items(name):
    lists = np.random.default_rng(1).integers(0, N_ITEMS, (6, 4)).tolist()
    model, histories = fit(name, lists, **CONTENT), ItemLists.from_lists([*lists, []])
    whole, _ = model.candidates(histories, N_ITEMS)
    allowed = np.isin(np.arange(N_ITEMS), [1, 4, 5, 8])
    items, scores = model.candidates(histories, 5, allowed)
    assert items.tolist() == [[*row[allowed[row]], -1] for row in whole]
    assert np.allclose(scores[:, :4], np.take_along_axis(model.scores(histories), items[:, :4], axis=1), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_equals_its_users_one_by_one(name, monkeypatch):
    lists = np.random.default_rng(0).integers(0, N_ITEMS, (40, 4)).tolist()
    model = fit(name, lists, **CONTENT)
    batch, batch_scores = model.candidates(ItemLists.from_lists(lists), 5)
    monkeypatch.setattr(base, "SCORES_PER_BLOCK", 3 * N_ITEMS)
    blocks, _ = model.candidates(ItemLists.from_lists(lists), 5)
    single = [model.candidates(ItemLists.from_lists([items]), 5) for items in lists]
    assert (blocks == batch).all()
    assert (np.concatenate([items for items, _ in single]) == batch).all()
    # Sums over batches of other shapes round differently.
    assert np.allclose(np.concatenate([scores for _, scores in single]), batch_scores, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_validation_targets_are_not_required(name):
    train = make_train_data([[0, 1, 2], [1, 2]], 3)
    assert load_plugin("pixrec_core.recommenders", name).fit(train).scores(train.train).shape == (2, 3)


SCORE_IN_ANOTHER_PROCESS = """
import sys
from pathlib import Path
import numpy as np
from pixrec_core.recommenders import load_model
from pixrec_core.recommenders.base import ItemLists
folder = Path(sys.argv[1])
for saved in sorted(folder.iterdir()):
    np.save(saved / "scores.npy", load_model(saved).scores(ItemLists.from_lists(eval(sys.argv[2]))))
"""


def test_a_saved_model_has_equal_scores_in_another_process(tmp_path):
    lists = np.random.default_rng(0).integers(0, N_ITEMS - 1, (12, 4)).tolist()
    histories = [[], [N_ITEMS - 1], *lists]
    models = {name: fit(name, lists, **CONTENT) for name in NAMES}
    for name, model in models.items():
        model.save(tmp_path / name)
    command = [sys.executable, "-c", SCORE_IN_ANOTHER_PROCESS, str(tmp_path), repr(histories)]
    subprocess.run(command, check=True)
    for name, model in models.items():
        expected = model.scores(ItemLists.from_lists(histories))
        assert np.array_equal(np.load(tmp_path / name / "scores.npy"), expected), name
        loaded = recommenders.load_model(tmp_path / name)
        assert (type(loaded), loaded.chosen) == (type(model), model.chosen)


def test_saving_replaces_a_model(tmp_path):
    fit("ease", [[0, 1]]).save(tmp_path / "model")
    fit("popularity", [[0, 1]]).save(tmp_path / "model")
    assert recommenders.load_model(tmp_path / "model").scores(ItemLists.from_lists([[]])).tolist() == [
        [1, 1, *[0] * (N_ITEMS - 2)]
    ]


@pytest.mark.parametrize("name", ["model.json", "arrays.safetensors"])
def test_a_damaged_model_is_refused(name, tmp_path):
    fit("popularity", [[0, 1]]).save(tmp_path / "model")
    (tmp_path / "model" / name).write_bytes(b"{")
    with pytest.raises(ArtefactError, match="run the stage"):
        recommenders.load_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda arrays: arrays.pop("popularity_ranks"),
            r"popularity_ranks is missing, model\.json says \['int64', 9\]",
        ),
        (lambda arrays: arrays.update(extra=np.zeros(2)), r"extra is \['float64', 2\], model\.json says none"),
        (lambda arrays: arrays.update(popularity_ranks=np.zeros((2, 2))), r"popularity_ranks is \['float64', 2, 2\]"),
    ],
)
def test_arrays_that_are_not_those_of_the_model_are_named(change, message, tmp_path):
    fit("popularity", [[0, 1]]).save(tmp_path / "model")
    arrays = load_file(tmp_path / "model" / "arrays.safetensors")
    change(arrays)
    save_file(arrays, tmp_path / "model" / "arrays.safetensors")
    with pytest.raises(ArtefactError, match=message):
        recommenders.load_model(tmp_path / "model")


@pytest.mark.parametrize("index", [-1, 10**9])
def test_a_matrix_that_points_outside_of_itself_is_refused(index, tmp_path):
    fit("co_occurrence", [[0, 1], [0, 1]]).save(tmp_path / "model")
    arrays = load_file(tmp_path / "model" / "arrays.safetensors")
    (name,) = [each for each in arrays if each.endswith(".indices")]
    arrays[name][0] = index
    save_file(arrays, tmp_path / "model" / "arrays.safetensors")
    with pytest.raises(ArtefactError, match="holds no model of CoOccurrence"):
        recommenders.load_model(tmp_path / "model")


@pytest.mark.parametrize("text", ["[]", "null", '{"method": "ease"}', "[" * 100_000])
def test_a_description_of_another_shape_is_refused(text, tmp_path):
    fit("popularity", [[0, 1]]).save(tmp_path / "model")
    (tmp_path / "model" / "model.json").write_text(text)
    with pytest.raises(ArtefactError, match=r"model\.json (describes no model|is damaged)"):
        recommenders.load_model(tmp_path / "model")


def test_a_model_of_other_fields_is_refused(tmp_path):
    fit("ease", [[0, 1]]).save(tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "model.json").read_text())
    (tmp_path / "model" / "model.json").write_text(json.dumps(settings | {"method": "popularity"}))
    with pytest.raises(ArtefactError, match="no model of Popularity"):
        recommenders.load_model(tmp_path / "model")


def test_a_missing_model_is_refused(tmp_path):
    with pytest.raises(MissingArtefactError, match=r"model\.json"):
        recommenders.load_model(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_candidates_need_no_score_matrix(name, monkeypatch):
    """100,000 items and 1,000 users: all scores take 400 MB, and twice as much while they are sorted."""
    monkeypatch.setattr(ease, "MOST_ITEMS", 500)
    monkeypatch.setattr(ease, "PENALTIES", (50.0,))
    lists = np.random.default_rng(0).integers(0, 100_000, (1000, 4)).tolist()
    train = make_train_data(lists, 100_000, validation=[(lists[0], lists[1][0])])
    model = load_plugin("pixrec_core.recommenders", name).fit(train)
    tracemalloc.start()
    try:
        items, _ = model.candidates(train.train, 50)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert items.shape == (1000, 50)
    assert peak < 200e6


def test_the_stage_learns_from_training_only_and_replaces_the_folder(tmp_path):
    bought = {"u": ["a", "b", "c", "d"], "v": ["a", "c", "c", "e"], "w": ["b", "e", "e"]}
    paths = DatasetPaths.of(tmp_path, "tiny")
    train = [items[:-2] for items in bought.values()]
    sequences_file.write(paths, sequences_file.catalogue(train, "abcde"), sequences_file.sequences(bought))
    photos_folder.write(paths, dict.fromkeys("abcde", "red"))
    build_item_features(ModelSettings(), paths, LOCAL)
    paths.baseline("removed").model.mkdir(parents=True)

    stats = recommenders.build_baselines(RetrievalSettings(depth=1), paths)

    assert sorted(path.name for path in paths.baselines.iterdir()) == DEFAULT == stats["baselines"]
    assert list(paths.ranked_methods([])) == DEFAULT
    assert (stats["users"], stats["items"]) == (3, 5)
    assert set(stats["chosen"]["sasrec"]) == {"epochs", "validation_ndcg@10"}
    assert "popularity" not in stats["chosen"], "it has no settings"
    popularity, repeat_last = paths.baseline("popularity"), paths.baseline("repeat_last")
    lists = pl.read_parquet(popularity.ranking).group_by("user").agg("item").sort("user")
    # Training has a twice, b twice and c once; the other occurrences of c are in validation and test.
    assert lists["item"].to_list() == [["a", "b", "c", "d"], ["a", "b", "c"], ["a", "b", "c"]]
    newest = pl.read_parquet(repeat_last.ranking).filter(pl.col("user") == "v")
    assert newest["item"].to_list() == ["c", "a", "b"]
    # Two of the three validation users decide settings, so the other one is ranked for stacking.
    stacking = pl.read_parquet(repeat_last.validation_ranking)
    assert stacking.schema == RANKING_SCHEMA
    (user,) = stacking["user"].unique()
    assert stacking["item"].to_list()[0] == bought[user][-3], "the newest item before the validation target"
    scores = recommenders.load_model(popularity.model).scores(ItemLists.from_lists([[]]))
    assert scores.tolist() == [[2, 2, 1, 0, 0]]


def test_several_processes_fit_the_same_baselines(tmp_path, monkeypatch, opened):
    paths = DatasetPaths.of(shutil.copytree(opened, tmp_path / "shop") / "data", "shop")
    names = ["co_occurrence", "markov_chain", "popularity"]

    def build():
        stats = recommenders.build_baselines(RetrievalSettings(baselines=names), paths)
        built = [path for path in paths.baselines.rglob("*") if path.is_file()]
        return stats, {path.relative_to(paths.root): path.read_bytes() for path in built}

    alone, alone_files = build()
    monkeypatch.setattr(recommenders, "MIN_INTERACTIONS", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(recommenders._Fitter, "fit", None)  # of this process
    together, together_files = build()
    assert together_files == alone_files
    assert together | {"seconds": None} == alone | {"seconds": None}
    assert list(together["seconds"]) == names


def test_only_the_baselines_of_the_settings_are_fitted(tmp_path):
    paths = DatasetPaths.of(tmp_path, "tiny")
    sequences_file.write(
        paths, sequences_file.catalogue([["a"]], "abc"), sequences_file.sequences({"u": ["a", "b", "c"]})
    )
    stats = recommenders.build_baselines(RetrievalSettings(baselines=("repeat_last", "popularity")), paths)
    assert (
        sorted(path.name for path in paths.baselines.iterdir()) == ["popularity", "repeat_last"] == stats["baselines"]
    )
    for name, message in (
        ("eas", r"retrieval\.baselines: 'eas' is no baseline: did you mean `ease`\?"),
        ("blend", r"'blend' is no baseline; known: bm25_text, .*semantic_ids"),
    ):
        with pytest.raises(SettingsError, match=message):
            recommenders.build_baselines(RetrievalSettings(baselines=(name,)), paths)
