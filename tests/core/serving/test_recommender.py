"""Recommendations of a promoted checkpoint, compared with the ranking stage and with the towers directly."""

import io
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from pixrec_core.data.sequences import read_sequences
from pixrec_core.errors import QueryError
from pixrec_core.models import frozen_features
from pixrec_core.models.encoders import load_encoder
from pixrec_core.models.frozen_features import FrozenEncoders
from pixrec_core.retrieval import encode
from pixrec_core.retrieval.retriever import Retriever
from pixrec_core.schemas import ITEM, ITEMS, RANK, TEST, USER
from pixrec_core.serving import Recommendation, Recommender
from pixrec_core.serving.rules import ItemRules
from pixrec_core.stages import Work
from tests.core.shop import served_shop


@pytest.fixture
def bought(served: Work) -> dict[str, list[str]]:
    """All items of each user."""
    return dict(read_sequences(served.paths, TEST).select(USER, ITEMS).rows())


def test_recommendations_equal_those_of_the_ranking_stage(recommender, served, bought):
    ranking = pl.read_parquet(served.variant_paths.ranking).sort(USER, RANK)
    users = list(bought)[:5]
    lists = recommender.for_histories([bought[user][:-1] for user in users])
    for user, answer in zip(users, lists, strict=True):
        expected = ranking.filter(pl.col(USER) == user).head(10)
        assert [each.item for each in answer] == expected[ITEM].to_list()
        np.testing.assert_allclose([each.score for each in answer], expected["score"], atol=1e-5)


def test_a_user_query_takes_the_whole_history(recommender, bought):
    user, items = next(iter(bought.items()))
    assert recommender.history(user) == items
    assert recommender.for_user(user) == recommender.for_items(items)


@pytest.mark.parametrize("timed", [False, True])
def test_inner_products_of_user_and_item_vectors_are_the_scores(recommender, bought, timed):
    histories = list(bought.values())[:3]
    times = [[10**12 + 10**10 * n for n in range(len(history))] for history in histories] if timed else None
    vectors = recommender.user_vectors(histories, times=times)
    items, known = encode.read_item_vectors(recommender.paths.variant("collaborative").item_vectors)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    for history, vector, answer in zip(
        histories, vectors, recommender.for_histories(histories, 5, times=times), strict=True
    ):
        scores = known @ vector
        scores[[items.index(item) for item in history]] += recommender.tower().retriever.seen_offset
        assert [each.item for each in answer] == [items[n] for n in np.argsort(-scores)[:5]]
        np.testing.assert_allclose([each.score for each in answer], np.sort(scores)[::-1][:5], atol=1e-5)


def test_only_the_newest_items_of_a_history_count(recommender, bought):
    items = max(bought.values(), key=len)
    assert len(items) > recommender.tower().retriever.encoder.max_history_len == 4
    whole, newest = recommender.user_vectors([items, items[-4:]])
    np.testing.assert_allclose(whole, newest, atol=1e-6)


def test_a_batch_gives_the_same_lists_as_single_queries(recommender, bought):
    histories = [bought[user] for user in list(bought)[:3]]
    for filter_seen in (False, True):
        batch = recommender.for_histories(histories, 5, filter_seen=filter_seen)
        for history, answer in zip(histories, batch, strict=True):
            alone = recommender.for_items(history, 5, filter_seen=filter_seen)
            assert [each.item for each in answer] == [each.item for each in alone]


def test_seen_items_can_be_filtered(recommender, bought):
    items = next(iter(bought.values()))
    whole = recommender.for_items(items, 1000)
    assert recommender.for_items(items, 5, filter_seen=True) == [each for each in whole if each.item not in items][:5]


def test_an_unknown_option_is_refused(recommender):
    with pytest.raises(TypeError, match="filter_sen"):
        recommender.for_items([], filter_sen=True)


def test_every_item_is_a_candidate_once(recommender, bought):
    answer = recommender.for_items(next(iter(bought.values())), 1000)
    assert sorted(each.item for each in answer) == recommender.catalogue[ITEM].to_list()
    assert [each.score for each in answer] == sorted((each.score for each in answer), reverse=True)


def test_items_without_interactions_are_candidates_if_the_settings_include_them(tmp_path):
    wanted = {"min_item_interactions": 12, "include_cold_items": True}  # all other items count as never bought
    work = served_shop(tmp_path, "text_only", sequences=wanted)
    histories = read_sequences(work.paths, TEST)[ITEMS].to_list()
    new = set(pl.read_parquet(work.paths.items)[ITEM]) - {item for history in histories for item in history}
    assert len(new) > 5
    recommender = Recommender.load(work.paths.promoted.root)
    answer = {each.item for each in recommender.for_items(histories[0], 1000)}
    assert new < answer
    assert recommender.for_items([*new][:2], 5), "a new item is no valid history"


def text_vector(retriever: Retriever, text: str) -> np.ndarray:
    """The vector of an item with a text only, from the parts of the tower."""
    model, processor = retriever.encoder.model, retriever.processor
    if isinstance(processor, FrozenEncoders):
        raw = torch.from_numpy(load_encoder(processor.folders["text"]).encode_texts([text]))[0]
        whitening = model.whitening["text"]
        content = torch.nn.functional.normalize((raw - whitening.mean) @ whitening.matrix.T, dim=0)
        vector = model.item_head.maps["text"](content)
    else:
        ids = [*processor.start_ids, *processor.text_ids(text)[:8], *processor.text_ids("\n")]
        hidden = model.hidden_states(torch.tensor([ids]), torch.full((1, len(ids)), -1), None)
        vector = model.item_head(hidden[0, len(processor.start_ids) :].mean(dim=0))
    return torch.nn.functional.normalize(vector, dim=0).numpy()


@pytest.mark.parametrize("variant", ["collaborative", "text_only"])
@torch.inference_mode()
def test_a_text_is_encoded_as_the_title_of_an_item(recommender, variant):
    vector = text_vector(recommender.tower(variant).retriever, "Title: red shirt")
    items, vectors = encode.read_item_vectors(recommender.paths.variant(variant).item_vectors)
    best = np.argsort(-(vectors @ vector))[:3]
    answer = recommender.for_text("red shirt", 3, method=variant)
    assert [each.item for each in answer] == [items[n] for n in best]
    np.testing.assert_allclose([each.score for each in answer], (vectors @ vector)[best], atol=1e-5)


@pytest.mark.parametrize("served", ["items"], indirect=True)
def test_queries_load_an_encoder_once(served, monkeypatch):
    loaded = []
    monkeypatch.setattr(
        frozen_features, "load_encoder", lambda folder: loaded.append(folder.name) or load_encoder(folder)
    )
    recommender = Recommender.load(served.paths.promoted.root)
    photo = served.paths.image(recommender.catalogue.filter("has_image")[ITEM][3]).read_bytes()
    answers = [recommender.for_text(text, 3, method="collaborative") for text in ("red shirt", "cup", "red shirt")]
    assert answers[0] == answers[2] != answers[1]
    assert recommender.for_photo(photo, 3) == recommender.for_photo(photo, 3)
    assert loaded == ["text_encoder", "photo_encoder"]


def test_a_photo_finds_its_item(recommender, served):
    item = recommender.catalogue.filter("has_image")[ITEM][3]
    photo = served.paths.image(item).read_bytes()
    first = recommender.for_photo(photo, 1, method="image_only")[0]  # whose items are photos only
    assert first == Recommendation(item, pytest.approx(1, abs=2e-3))  # the query is compressed once more


def png(mode: str, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (lambda r: r.for_user("nobody"), "unknown user 'nobody': shop had no interactions of this user at 20"),
        (lambda r: r.for_items(["no", "B0"]), r"unknown item 'no', 'B0': not among the \d+ of shop .*`pixrec refresh`"),
        (lambda r: r.for_items([str(n) for n in range(7)]), "'4' and 2 more: not among"),
        (lambda r: r.for_items([], method="bert"), "unknown method 'bert'; promoted of shop: collaborative, ease, "),
        (lambda r: r.for_histories([[]], times=[[1]]), "times and histories differ in length"),
        (lambda r: r.for_histories([r.catalogue[ITEM][:2]], times=[[2, 1]]), "the times of a history decrease"),
        (lambda r: r.user_vectors([[]]), "the history is empty"),
        (lambda r: r.for_text(" \n"), "the text is empty"),
        (lambda r: r.for_text("cup", 0), "top is 0; it must be 1 or more"),
        (lambda r: r.for_items([], 0), "top is 0; it must be 1 or more"),
        (lambda r: r.for_photo(b"<html>404</html>"), "cannot be used: not an image"),
        (lambda r: r.for_photo(png("1", (10_000, 6_000))), "cannot be used: too many pixels"),
        (lambda r: r.for_photo(png("RGB", (8, 8)), method="text_only"), "method text_only of shop reads no photos; "),
        (lambda r: r.for_text("cup", method="image_only"), "method image_only of shop reads no texts; leave out"),
        (lambda r: r.for_text("cup", method="ease"), "method ease of shop reads no texts; leave out the method"),
        (lambda r: r.for_text("cup", method="bert"), "unknown method 'bert'"),
    ],
)
def test_an_invalid_query_is_named_with_the_remedy(recommender, query, message):
    with pytest.raises(QueryError, match=message):
        query(recommender)


def test_a_catalogue_without_photos_answers_no_photo(recommender, monkeypatch):
    monkeypatch.setattr(Retriever, "reads_photos", False)
    with pytest.raises(QueryError, match="no promoted method of shop reads any photos; query by a history, or"):
        recommender.for_photo(png("RGB", (8, 8)))


def test_a_loaded_method_does_not_wait_for_another_one(recommender):
    loaded = recommender.method()
    with recommender._lock, ThreadPoolExecutor(1) as pool:
        assert pool.submit(recommender.method).result() is loaded


def test_an_old_recommender_is_freed_at_once(served):
    recommender = Recommender.load(served.paths.promoted.root)
    recommender.for_items([])
    freed = weakref.ref(recommender)
    del recommender
    assert freed() is None


def test_without_a_variant_that_reads_photos_no_photo_is_answered(blended):
    with pytest.raises(QueryError, match="no promoted method of shop reads any photos; query by a history, or"):
        Recommender.load(blended.paths.promoted.root).for_photo(png("RGB", (8, 8)))


def test_a_batch_with_one_long_history_takes_little_memory():
    """To leave out 4,000 items of one user, 4,002 are ranked for each of 200: 800,000 numbers, and as many scores."""
    users, found, n = 200, 4_002, 5_000
    ranked = np.tile(np.arange(found), (users, 1)), np.ones((users, found), np.float32)
    rules = ItemRules(np.ones(n, np.bool_), np.zeros(0, np.int64), (), filter_seen=True, bought_within_days=0)
    catalogue, excluded = SimpleNamespace(_item_ids=[f"i{number}" for number in range(n)]), [set(range(4_000))]
    tracemalloc.start()
    lists = Recommender._select(catalogue, lambda _: ranked, rules, excluded + [set()] * (users - 1), 2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [[each.item for each in lists[user]] for user in (0, 1)] == [["i4000", "i4001"], ["i0", "i1"]]
    assert peak < 5_000_000
