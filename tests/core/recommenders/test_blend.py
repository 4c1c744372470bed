"""The blend on generated users of whom one method knows the target, one is noise, and one repeats another."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file, save_file
from threadpoolctl import threadpool_limits

from pixrec_core.data.sequences import read_items, read_sequences
from pixrec_core.errors import ArtefactError, MissingArtefactError, SettingsError
from pixrec_core.evaluation.validation import stacking_users
from pixrec_core.paths import DatasetPaths
from pixrec_core.recommenders import _blend_inputs, blend
from pixrec_core.recommenders import _blend_rankings as rankings
from pixrec_core.recommenders import _blend_training as training
from pixrec_core.recommenders._blend_features import COMMON, ItemTable, MethodLists, find_candidates
from pixrec_core.recommenders._blend_rankings import read_batches, read_training_users
from pixrec_core.recommenders._blend_training import TrainingUsers, fit_weights, pretend_cold, ranks_among_candidates
from pixrec_core.recommenders.base import ItemLists
from pixrec_core.recommenders.blend import Blend, build_blend
from pixrec_core.schemas import RANKING_SCHEMA
from pixrec_core.settings import BlendSettings, RetrievalSettings
from tests.core import sequences_file

ITEMS = [f"i{n:02}" for n in range(30)]
USERS = 400
DEPTH = 8


def bought(seed=0):
    """What users bought: after item n comes n + 1."""
    random = np.random.default_rng(seed)
    starts = random.integers(0, len(ITEMS), USERS)
    return {f"u{u:03}": [ITEMS[(start + step) % len(ITEMS)] for step in range(5)] for u, start in enumerate(starts)}


def ranked(sequences, *, knows, seed):
    """A ranking: the item after the newest one is among the first with probability `knows`, the rest is noise."""
    random = np.random.default_rng(seed)
    frames = []
    for user, items in sequences.select("user", "items").rows():
        order = random.permutation(len(ITEMS)).tolist()
        following = (ITEMS.index(items[-2]) + 1) % len(ITEMS)
        if random.random() < knows:
            order.remove(following)
            order.insert(int(random.integers(0, 3)), following)
        length = min(len(ITEMS), DEPTH + len(set(items[:-1])))
        row = {"user": [user] * length, "rank": range(1, length + 1), "item": [ITEMS[n] for n in order[:length]]}
        frames.append(pl.DataFrame(row).with_columns(score=pl.lit(1.0) / pl.col("rank")))
    return pl.concat(frames).cast(dict(RANKING_SCHEMA)).select(list(RANKING_SCHEMA))


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    paths = DatasetPaths.of(tmp_path_factory.mktemp("blend"), "tiny")
    lists = bought()
    table = sequences_file.sequences(lists)
    sequences_file.write(paths, sequences_file.catalogue([items[:-2] for items in lists.values()], ITEMS), table)
    validation, test = (table.filter(pl.col("split") == split).sort("user") for split in ("validation", "test"))
    stacking = validation.filter(stacking_users(validation.height))
    for seed, (name, knows) in enumerate({"good": 0.8, "noise": 0.0, "tower": 0.6}.items()):
        method = paths.variant(name) if name == "tower" else paths.baseline(name)
        method.root.mkdir(parents=True)
        ranked(test, knows=knows, seed=seed).write_parquet(method.ranking)
        ranked(stacking, knows=knows, seed=10 + seed).write_parquet(method.validation_ranking)
    return paths


@pytest.fixture(scope="module", autouse=True)
def trees_with_few_users():
    """Train trees, and keep them although they are no better than the linear part on these users."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "MIN_TREE_USERS", 50)
        choose_rounds = training._choose_rounds
        patch.setattr(training, "_choose_rounds", lambda *args: (choose_rounds(*args)[0], np.ones(1)))
        yield


@pytest.fixture(scope="module")
def stats(paths, trees_with_few_users):
    return build_blend(BlendSettings(), RetrievalSettings(depth=DEPTH), paths, ["tower", "never_ranked"])


def targets():
    sequences = sequences_file.sequences(bought())
    return sequences.filter(pl.col("split") == "test").select("user", pl.col("items").list.last().alias("item"))


def hits(ranking, at):
    return ranking.filter(pl.col("rank") <= at).join(targets(), on=["user", "item"]).height / USERS


def test_it_is_better_than_each_method(paths, stats):
    shares = [
        hits(pl.read_parquet(path), 1) for path in (paths.baseline("good").ranking, paths.variant("tower").ranking)
    ]
    assert hits(pl.read_parquet(paths.blend.ranking), 1) > 1.5 * max(shares)
    assert stats["users"] == USERS
    assert stats["training_users"] == USERS // 2


def test_the_ranking_holds_each_list_once_and_long_enough(paths, stats):
    ranking = pl.read_parquet(paths.blend.ranking)
    assert ranking.schema == RANKING_SCHEMA
    by_user = ranking.group_by("user").agg(pl.all()).sort("user")
    assert by_user.height == USERS
    for ranks, items, scores in by_user.select("rank", "item", "score").rows():
        assert ranks == list(range(1, DEPTH + 4 + 1)), "depth, and one more for each of the four items of the history"
        assert len(set(items)) == len(items)
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("threads", [1, 3])
def test_training_is_deterministic(paths, stats, threads):
    before = {path.name: path.read_bytes() for path in paths.blend.root.iterdir()}
    with threadpool_limits(threads, user_api="openmp"):
        again = build_blend(BlendSettings(), RetrievalSettings(depth=DEPTH), paths, ["tower", "never_ranked"])
    assert {path.name: path.read_bytes() for path in paths.blend.root.iterdir()} == before
    assert again["held_out_ndcg@10"] == stats["held_out_ndcg@10"]


def test_test_targets_do_not_reach_the_model(paths, stats, tmp_path):
    """Other test targets, and other rankings of test users, give the same model."""
    other = DatasetPaths.of(tmp_path, "tiny")
    lists = {user: [*items[:-1], ITEMS[0]] for user, items in bought().items()}
    table = sequences_file.sequences(lists)
    sequences_file.write(other, sequences_file.catalogue([items[:-2] for items in lists.values()], ITEMS), table)
    test = table.filter(pl.col("split") == "test").sort("user")
    for name in ("good", "noise", "tower"):
        mine, theirs = (each.variant(name) if name == "tower" else each.baseline(name) for each in (paths, other))
        theirs.root.mkdir(parents=True)
        theirs.validation_ranking.write_bytes(mine.validation_ranking.read_bytes())
        ranked(test, knows=0, seed=99).write_parquet(theirs.ranking)
    build_blend(BlendSettings(), RetrievalSettings(depth=DEPTH), other, ["tower"])
    for name in (blend.MODEL, blend.ITEM_TABLE, blend.DESCRIPTION):
        assert (other.blend.root / name).read_bytes() == (paths.blend.root / name).read_bytes()


RANK_IN_ANOTHER_PROCESS = """
import sys
from pathlib import Path
import numpy as np
from pixrec_core.recommenders._blend_features import MethodLists
from pixrec_core.recommenders.base import ItemLists
from pixrec_core.recommenders.blend import Blend
loaded = Blend.load(Path(sys.argv[1]))
given = np.load(sys.argv[2])
lists = {name: MethodLists(given[name], given[name + "_scores"]) for name in loaded.methods}
histories = ItemLists(given["values"], given["offsets"], given["times"])
items, scores = loaded.rank(lists, histories, given["lengths"])
np.savez(sys.argv[3], items=items, scores=scores)
"""


def a_request(loaded):
    random = np.random.default_rng(3)
    histories = ItemLists.from_lists([[1, 2, 1], [], [5], [7, 8, 9, 9]])
    histories = replace(histories, times=np.arange(len(histories.values)) * sequences_file.DAY)
    orders = [np.stack([random.permutation(len(ITEMS))[:12] for _ in histories.offsets[1:]]) for _ in loaded.methods]
    scores = -np.arange(12, dtype=np.float32) * np.ones((4, 12), np.float32)
    return {m: MethodLists(order, scores) for m, order in zip(loaded.methods, orders, strict=True)}, histories


def test_a_saved_blend_ranks_equally_in_another_process(paths, stats, tmp_path):
    loaded = Blend.load(paths.blend.root)
    lists, histories = a_request(loaded)
    lengths = np.array([30, 30, 5, 8])
    items, scores = loaded.rank(lists, histories, lengths)
    arrays = {name: each.items for name, each in lists.items()}
    arrays |= {f"{name}_scores": each.scores for name, each in lists.items()}
    history = {"values": histories.values, "offsets": histories.offsets, "times": histories.times}
    np.savez(tmp_path / "given.npz", **arrays, **history, lengths=lengths)
    files = [str(paths.blend.root), str(tmp_path / "given.npz"), str(tmp_path / "found.npz")]
    subprocess.run([sys.executable, "-c", RANK_IN_ANOTHER_PROCESS, *files], check=True)
    found = np.load(tmp_path / "found.npz")
    assert np.array_equal(found["items"], items)
    assert np.array_equal(found["scores"], scores)


def test_every_list_is_as_long_as_it_should_be_and_an_empty_history_gets_the_popularity_order(paths, stats):
    loaded = Blend.load(paths.blend.root)
    lists, histories = a_request(loaded)
    items, scores = loaded.rank(lists, histories, np.array([30, 30, 5, 8]))
    assert (items >= 0).sum(axis=1).tolist() == [30, 30, 5, 8]
    assert sorted(items[0].tolist()) == list(range(30))
    assert items[1].tolist() == np.argsort(loaded.items.popularity_ranks).tolist()
    assert (np.diff(scores[:2], axis=1) <= 0).all()


def test_a_batch_equals_its_users_one_by_one(paths, stats):
    loaded = Blend.load(paths.blend.root)
    lists, histories = a_request(loaded)
    lengths = np.array([9, 9, 9, 9])
    items, scores = loaded.rank(lists, histories, lengths)
    for user, (part, history) in enumerate(histories.batches(1)):
        own = {name: MethodLists(each.items[part], each.scores[part]) for name, each in lists.items()}
        one_items, one_scores = loaded.rank(own, history, lengths[part])
        assert np.array_equal(one_items[0], items[user])
        assert np.array_equal(one_scores[0], scores[user])


def test_ranks_among_candidates_by_hand():
    histories = replace(ItemLists.from_lists([[0], [1]]), times=np.zeros(2, np.int64))
    lists = {"one": MethodLists(np.array([[2, 3, 4], [2, 3, 4]]), np.ones((2, 3), np.float32))}
    table = ItemTable.of(sequences_file.catalogue([], "abcde"), np.zeros(0, np.int64), np.zeros(0, np.int64))
    users = TrainingUsers(find_candidates(lists, histories, table, 9), np.array([3, 0]))
    assert ranks_among_candidates(users, np.array([5.0, 4, 3, 1, 1, 1])).tolist() == [2, np.inf]
    assert ranks_among_candidates(users, np.array([4.0, 4, 4, 1, 1, 1])).tolist() == [3, np.inf], (
        "equal scores rank before"
    )


@pytest.mark.parametrize(("users", "better"), [(90, False), (100, True)])
def test_a_simpler_blend_must_be_better_by_two_standard_errors(users, better):
    """Of each ten users six gain 1 and four lose 1: the mean is 0.2, the standard error sqrt(0.96 / users)."""
    gains = np.tile([1.0] * 6 + [-1.0] * 4, users // 10)
    assert training.is_significantly_better(gains, np.zeros(users)) is better


def test_with_few_users_the_blend_is_linear_and_a_method_that_adds_nothing_is_dropped(monkeypatch, paths):
    monkeypatch.setattr(training, "MIN_TREE_USERS", USERS)
    monkeypatch.setattr(training, "MIN_GAIN", -2)  # drop what no difference can be seen of
    stats = build_blend(BlendSettings(), RetrievalSettings(depth=DEPTH), paths, ["tower"])
    assert (stats["trees"], stats["methods"]) == (0, ["good", "tower"])
    assert list(stats["dropped"]) == ["noise"]
    assert set(stats["kept"]) == {"good", "tower"}
    assert all(loss > 0 for loss in stats["kept"].values())
    names, shares = zip(*(each.split() for each in stats["importance"]), strict=True)
    assert not any(name.startswith("noise") for name in names)
    assert sum(map(float, shares)) == pytest.approx(1, abs=0.01)
    assert list(map(float, shares)) == sorted(map(float, shares), reverse=True)
    assert not (paths.blend.root / blend.MODEL).exists()
    loaded = Blend.load(paths.blend.root)
    lists, histories = a_request(loaded)
    found = find_candidates(lists, histories, loaded.items, loaded.candidates)
    assert loaded.learned.score(found) == pytest.approx(found.linear_matrix() @ loaded.learned.weights, abs=1e-5)


def test_weights_of_the_linear_part_minimise_the_penalised_loss(monkeypatch):
    """Of two methods with one item each, the one that is right in three of four cases has the higher weight."""
    monkeypatch.setattr(training, "LINEAR_PENALTY", 1e-6)
    n_users = 40
    histories = replace(ItemLists.from_lists([[0]] * n_users), times=np.zeros(n_users, np.int64))
    ones = np.ones((n_users, 1), np.float32)
    lists = {name: MethodLists(np.full((n_users, 1), item), ones) for name, item in (("one", 1), ("two", 2))}
    table = ItemTable.of(sequences_file.catalogue([], "abcde"), np.zeros(0, np.int64), np.zeros(0, np.int64))
    targets = np.where(np.arange(n_users) % 4 == 0, 2, 1)
    users = TrainingUsers(find_candidates(lists, histories, table, 9), targets)
    scores = users.candidates.linear_matrix() @ fit_weights(users)
    assert scores[0] - scores[1] == pytest.approx(np.log(3), abs=0.01)


def test_users_whose_target_is_no_candidate_have_no_candidates_and_no_weights(paths):
    validation = read_sequences(paths, "validation")
    stacking = validation.filter(stacking_users(validation.height))
    methods, item_ids, table = {"good": paths.baseline("good")}, pl.Series(ITEMS), ItemTable.read(paths)
    users = read_training_users(methods, 1, stacking, item_ids, table)
    hit = users.hit
    assert 0 < hit.sum() < len(hit)
    assert hit[users.candidates.rows].all()
    missed = TrainingUsers(users.candidates, np.full(len(hit), -1))
    assert not fit_weights(missed).any()


def test_weights_of_some_methods_equal_those_of_their_candidates_alone(paths):
    validation = read_sequences(paths, "validation")
    stacking = validation.filter(stacking_users(validation.height))
    methods = {name: paths.baseline(name) for name in ("good", "noise")} | {"tower": paths.variant("tower")}
    users = read_training_users(methods, 20, stacking, pl.Series(ITEMS), ItemTable.read(paths))
    mask = np.arange(len(users.targets)) % 3 > 0
    weights = fit_weights(users, ["good", "tower"], mask)
    assert weights == pytest.approx(fit_weights(users.of(mask, ["good", "tower"])), abs=1e-3)
    assert fit_weights(users, ["good", "tower"], mask, start=weights) == pytest.approx(weights, abs=0.01)


def candidates_of_two_methods():
    """Item 4 is cold and only method `text` lists it; item 0 is in the history."""
    catalogue = sequences_file.catalogue([], "abcde")
    table = ItemTable.of(catalogue, np.array([0, 1, 2, 3]), np.full(4, sequences_file.DAY))
    histories = replace(ItemLists.from_lists([[0]]), times=np.array([2 * sequences_file.DAY]))
    scores = np.arange(4, 0, -1, dtype=np.float32)[None]
    lists = {
        "text": MethodLists(np.array([[4, 0, 1, -1]]), scores),
        "ids": MethodLists(np.array([[0, 1, 2, 3]]), scores),
    }
    return find_candidates(lists, histories, table, 9)


def test_an_item_that_is_taken_for_cold_looks_as_a_cold_one():
    found = candidates_of_two_methods()
    assert found.items[found.cold].tolist() == [4]
    masked = found.as_cold(np.isin(found.items, [1, 2]))
    assert masked.items.tolist() == [0, 1, 3, 4], "only ids listed item 2, and ids lists no cold item"
    assert masked.cold.tolist() == [False, True, False, True]
    assert masked.ranks[1].tolist() == pytest.approx([3, np.nan], nan_ok=True)
    item_facts = [n for n, name in enumerate(COMMON) if "popularity" in name or "sale" in name or "trend" in name]
    np.testing.assert_array_equal(masked.common[1, item_facts], masked.common[3, item_facts])
    np.testing.assert_array_equal(masked.matrix()[[0, 2]], found.matrix()[[0, 3]])


def test_seen_items_are_never_taken_for_cold(monkeypatch):
    monkeypatch.setattr(training, "COLD_SHARE", 1.0)
    users = TrainingUsers(candidates_of_two_methods(), np.array([1]))
    masked = pretend_cold(users).candidates
    assert masked.items[~masked.cold].tolist() == [0]
    warm = replace(users, candidates=users.candidates.take(~users.candidates.cold))
    assert pretend_cold(warm) is warm, "nothing shows which methods know cold items"


def test_too_few_users_give_no_blend(monkeypatch, paths):
    monkeypatch.setattr(training, "MIN_USERS", USERS)
    stats = build_blend(BlendSettings(), RetrievalSettings(), paths, [])
    assert (stats["blended"], list(paths.blend.root.iterdir())) == (False, [])


def test_without_enabled_there_is_no_blend(paths):
    assert not build_blend(BlendSettings(enabled=False), RetrievalSettings(), paths, [])["blended"]
    assert not paths.blend.ranking.exists()


def test_settings_choose_the_methods(paths):
    stats = build_blend(BlendSettings(methods=("tower", "noise")), RetrievalSettings(depth=DEPTH), paths, ["tower"])
    assert {*stats["methods"], *stats["dropped"]} == {"tower", "noise"}
    with pytest.raises(SettingsError, match=r"blend\.methods names bert, .*; there are: good, noise, tower"):
        build_blend(BlendSettings(methods=("bert",)), RetrievalSettings(), paths, ["tower"])


@pytest.mark.parametrize(
    "change",
    [
        lambda users: users[:2],
        lambda users: users[1:],
        lambda users: users.extend(pl.Series(["u999"])),
        lambda users: users.reverse(),
    ],
)
def test_a_ranking_of_other_users_is_refused(paths, change):
    users = change(pl.Series([f"u{u:03}" for u in range(USERS)]))
    path, batches = paths.baseline("good").ranking, [slice(0, len(users))]
    with pytest.raises(ArtefactError, match="of good is of other users or items"):
        list(rankings._read_lists(path, "good", users, read_items(paths)["item"], batches))


@pytest.mark.parametrize("kept", [0, 9, -9])
def test_a_damaged_ranking_is_named(paths, tmp_path, kept):
    path = tmp_path / "ranking.parquet"
    path.write_bytes(paths.baseline("good").ranking.read_bytes()[:kept])
    with pytest.raises(ArtefactError, match=r"of good is damaged .*rank again with --force"):
        list(rankings._read_frames(path, "good"))


def test_rankings_are_read_in_batches(monkeypatch, paths):
    """By number of users, then by the size of their histories, which have five items with the target."""
    path, sequences = paths.baseline("good").ranking, read_sequences(paths, "test")
    monkeypatch.setattr(rankings, "USERS_PER_BATCH", 150)
    selected = np.arange(USERS) >= 200
    batches = list(read_batches({"good": path}, sequences, pl.Series(ITEMS), selected))
    assert [len(histories) for _, histories in batches] == [100, 100]
    monkeypatch.setattr(rankings, "CELLS_PER_BATCH", 300)
    assert [len(histories) for _, histories in read_batches({"good": path}, sequences, pl.Series(ITEMS))] == [
        *[60] * 6,
        40,
    ]
    ranking = pl.read_parquet(path).filter(pl.col("user") >= "u200")
    items = np.concatenate([lists["good"].items[lists["good"].items >= 0] for lists, _ in batches])
    scores = np.concatenate([lists["good"].scores[lists["good"].items >= 0] for lists, _ in batches])
    assert [ITEMS[item] for item in items] == ranking["item"].to_list()
    assert scores.tolist() == ranking["score"].to_list()


@pytest.mark.parametrize("name", [blend.MODEL, blend.DESCRIPTION, blend.ITEM_TABLE])
def test_a_damaged_blend_is_refused(paths, name):
    build_blend(BlendSettings(), RetrievalSettings(depth=DEPTH), paths, ["tower"])
    (paths.blend.root / name).write_bytes(b"{")
    with pytest.raises(ArtefactError, match="run the stage `blend` with --force"):
        Blend.load(paths.blend.root)


def test_cut_trees_are_refused(paths):
    """LightGBM ends the process on some of them."""
    build_blend(BlendSettings(), RetrievalSettings(depth=DEPTH), paths, ["tower"])
    text = (paths.blend.root / blend.MODEL).read_text()
    (paths.blend.root / blend.MODEL).write_text(text[: len(text) // 2])
    with pytest.raises(ArtefactError, match=r"model\.txt is damaged"):
        Blend.load(paths.blend.root)


def test_facts_about_items_that_do_not_fit_are_named(paths):
    build_blend(BlendSettings(), RetrievalSettings(depth=DEPTH), paths, ["tower"])
    path = paths.blend.root / blend.ITEM_TABLE
    arrays = load_file(path)
    without_price = {name: array for name, array in arrays.items() if name != "price"}
    for changed, message in [
        (without_price, "price"),
        (arrays | {"extra": np.zeros(2)}, "extra"),
        (arrays | {"price": arrays["price"][1:]}, r"price has shape \(\d+,\) in place of \(\d+,\)"),
        (arrays | {"recent_counts": arrays["recent_counts"][:, :1].copy()}, "recent_counts has shape"),
        (arrays | {"categories.shape": np.array([10**9, 3])}, "index pointer"),
    ]:
        save_file(changed, path)
        with pytest.raises(ArtefactError, match=message):
            Blend.load(paths.blend.root)


def test_a_blend_of_other_features_is_refused(paths):
    build_blend(BlendSettings(), RetrievalSettings(depth=DEPTH), paths, ["tower"])
    description = json.loads((paths.blend.root / blend.DESCRIPTION).read_text())
    description["features"][0] = "good.cosine"
    (paths.blend.root / blend.DESCRIPTION).write_text(json.dumps(description))
    with pytest.raises(ArtefactError, match="other features"):
        Blend.load(paths.blend.root)


def test_a_missing_blend_is_refused(tmp_path):
    with pytest.raises(MissingArtefactError):
        Blend.load(tmp_path)


def test_a_blend_without_its_best_input_is_worse(paths, stats):
    found = blend.rank_without_inputs(BlendSettings(), RetrievalSettings(depth=DEPTH), paths, ["tower"])
    hits = {name: (ranks[:, 0] <= 1).mean() for name, ranks in found.ranks.items()}
    assert list(hits) == ["all inputs", "good", "noise", "tower"], "no method reads photos or texts, all read behaviour"
    assert found.users.to_list() == read_sequences(paths, "test")["user"].to_list()
    assert hits["good"] < hits["tower"] < hits["all inputs"]
    assert hits["noise"] == pytest.approx(hits["all inputs"], abs=0.05)
    filtered = found.ranks["all inputs"]
    assert (filtered[:, 1] <= filtered[:, 0]).all(), "seen items before the target do not count"


def test_the_worth_of_inputs_is_measured_on_a_sample_of_many_users(monkeypatch, paths, stats):
    monkeypatch.setattr(_blend_inputs, "TEST_USERS", 100)
    settings = (BlendSettings(methods=("good", "tower")), RetrievalSettings(depth=DEPTH))
    found = blend.rank_without_inputs(*settings, paths, ["tower"])
    assert found.users.is_sorted()
    assert {ranks.shape for ranks in found.ranks.values()} == {(100, 2)}


@pytest.mark.parametrize(
    ("methods", "has_photos", "left"),
    [
        (
            ["bm25_text", "ease", "image_knn"],
            True,
            {"photos": ["bm25_text", "ease"], "text": ["ease", "image_knn"], "behaviour": ["bm25_text", "image_knn"]},
        ),
        (["multimodal", "text_only"], True, {"photos": ["text_only"]}),
        (["ease", "multimodal", "text_only"], False, {"text": ["ease"]}),
        (["ease"], True, {}),
    ],
)
def test_methods_that_are_left_without_an_input(methods, has_photos, left):
    found = _blend_inputs._without_each(methods, has_photos=has_photos)
    assert {name: kept for name, kept in found.items() if name not in ["all inputs", *methods]} == left
