"""A refreshed promotion: a new item, new orders, the same weights."""

import shutil

import numpy as np
import polars as pl
import pytest
from PIL import Image

from pixrec_core import pipeline
from pixrec_core.errors import ArtefactError
from pixrec_core.evaluation.comparison import METRIC
from pixrec_core.models.encoders import lsa
from pixrec_core.schemas import HAS_IMAGE, IMAGE_URL, ITEM, ITEM_SCHEMA, TIMESTAMP, TITLE, USER
from pixrec_core.serving import Recommender, gate
from pixrec_core.serving.promotion import read_promotion
from tests.core.shop import open_shop, served_shop

VARIANTS = ("text_only", "collaborative", "image_only")
BASELINES = ("co_occurrence", "ease", "popularity", "recent_popularity", "sasrec")
NEW, PHOTO_ONLY, BUYER = "0-new", "1-photo", "new user"  # both items sort first


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A shop with two new items, one of them without text, and a new user who bought them and an old item."""
    folder = tmp_path_factory.mktemp("refresh")
    work = served_shop(folder, *VARIANTS, baselines=BASELINES, source={"users": 320, "items": 60})
    items, interactions = pl.read_parquet(work.paths.items), pl.read_parquet(work.paths.interactions)
    title = pl.lit("Purple velvet umbrella")
    new = items.head(1).with_columns(
        pl.lit(NEW).alias(ITEM), title.alias(TITLE), pl.lit(None, pl.String).alias(IMAGE_URL)
    )
    url = "images/striped.jpg"
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::8] = stripes[:, 1::8] = (0, 255, 0)
    Image.fromarray(stripes).save(work.paths.raw / url)
    photo = new.with_columns(
        pl.lit(PHOTO_ONLY).alias(ITEM),
        pl.lit(url).alias(IMAGE_URL),
        *(pl.lit(None, kind).alias(name) for name, kind in ITEM_SCHEMA.items() if name not in (ITEM, IMAGE_URL)),
    )
    pl.concat([new, photo, items]).write_parquet(work.paths.items)
    last = interactions[TIMESTAMP].max()
    bought = [items[ITEM][5], PHOTO_ONLY, NEW]
    orders = interactions.tail(3).with_columns(
        pl.lit(BUYER).alias(USER), pl.Series(ITEM, bought), pl.Series(TIMESTAMP, [last + 1, last + 2, last + 3])
    )
    pl.concat([interactions, orders]).sort(USER, TIMESTAMP).write_parquet(work.paths.interactions)
    for stage in (pipeline.images, pipeline.sequences, pipeline.item_features):
        stage(work)
    return work


@pytest.fixture(scope="module")
def before(work, tmp_path_factory):
    """What served, kept from deletion."""
    folder = tmp_path_factory.mktemp("before") / "promoted"
    shutil.copytree(work.paths.promoted.root, folder)
    return Recommender.load(folder)


@pytest.fixture(scope="module")
def after(work, before):
    stats = pipeline.refresh(work)
    assert (stats["promotion"], stats["new_items"], stats["left_items"]) == (2, 2, 0)
    return Recommender.load(work.paths.promoted.root)


def test_the_manifest_says_what_was_refreshed_and_when_it_was_trained(before, after):
    old, new = before.promotion, after.promotion
    assert (new.number, new.measured, new.trained_at) == (2, 1, old.promoted_at)
    assert (new.method, new.methods, new.score) == (old.method, old.methods, old.score)


def test_new_items_can_be_recommended_at_once_by_title_or_photo_alone(work, after):
    assert after.for_text("purple velvet umbrella", 3, method="text_only")[0].item == NEW
    photo = work.paths.image(PHOTO_ONLY).read_bytes()
    assert after.for_photo(photo, 1, method="image_only")[0].item == PHOTO_ONLY
    everything = {each.item for each in after.for_items([after.catalogue[ITEM][6]], len(after.catalogue))}
    assert {NEW, PHOTO_ONLY} <= everything


def test_new_orders_are_in_histories(after):
    assert after.history(BUYER)[-1] == NEW
    assert after.for_user(BUYER, 5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_vectors_of_known_items_do_not_change(before, after, variant):
    old, new = (each.tower(variant).retriever.item_index.vectors for each in (before, after))
    np.testing.assert_allclose(new[2:], old, atol=1e-5)


def test_a_network_gives_known_items_the_same_scores(before, after):
    history = before.catalogue[ITEM].to_list()[3:6]
    scores = []
    for each in (before, after):
        method = each.method("sasrec")
        scores.append(method.scores(each.item_lists([history]))[0])
    np.testing.assert_allclose(scores[1][2:], scores[0], atol=1e-5)


def test_popularity_counts_all_interactions(work, after):
    counts = dict(pl.read_parquet(work.paths.interactions).group_by(ITEM).len().iter_rows())
    assert after.method("popularity").counts.tolist() == [counts.get(item, 0) for item in after.catalogue[ITEM]]


def test_ease_is_solved_on_all_interactions_with_the_chosen_settings(work, before, after):
    old, model = before.method("ease"), after.method("ease")
    assert (model.chosen, model.recency) == (old.chosen, old.recency)
    items = after.catalogue[ITEM].to_list()
    bought = pl.read_parquet(work.paths.interactions).select(USER, ITEM).unique().filter(pl.col(ITEM).is_in(items))
    users = {user: row for row, user in enumerate(bought[USER].unique())}
    incidence = np.zeros((len(users), len(items)))
    for user, item in bought.iter_rows():
        incidence[users[user], items.index(item)] = 1
    precision = np.linalg.inv(incidence.T @ incidence + model.chosen["penalty"] * np.eye(len(items)))
    expected = -precision / np.diag(precision)
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(model.weights, expected, atol=1e-5)


def test_a_second_refresh_changes_nothing(work, after):
    histories = [after.catalogue[ITEM].to_list()[n : n + 3] for n in range(5)]
    lists = after.for_histories(histories, 20)
    pipeline.refresh(work)
    again = Recommender.load(work.paths.promoted.root)
    assert again.promotion.measured == 1
    assert again.for_histories(histories, 20) == lists
    assert {each.name for each in work.paths.promoted.root.iterdir() if each.is_dir()} == {"1", "2", "3"}


def test_the_next_promotion_is_compared_with_the_measured_one(tmp_path):
    folder = tmp_path
    work = served_shop(folder, "text_only", baselines=["ease", "popularity"], source={"users": 320, "items": 60})
    pipeline.refresh(work)
    stats = gate.promote_unless_worse("shop", work.dataset_settings, work.paths, ["text_only"])
    assert stats["promoted"]
    assert f"{METRIC}" in stats["verdict"]
    promotion = read_promotion(work.paths.promoted)
    assert (promotion.number, promotion.measured) == (3, 3)


FROZEN = {"user_encoder": "items"}


@pytest.mark.parametrize("came", [True, False])
def test_photos_may_have_come_or_gone_since_the_training(tmp_path, came):
    photos, elsewhere = tmp_path / "data" / "shop" / "raw" / "images", tmp_path / "elsewhere"
    open_shop(tmp_path, "multimodal", model=FROZEN)
    if came:
        photos.rename(elsewhere)
    served_shop(tmp_path, "multimodal", model=FROZEN)
    elsewhere.rename(photos) if came else photos.rename(elsewhere)
    work = open_shop(tmp_path, "multimodal", model=FROZEN)
    pipeline.refresh(work)
    recommender = Recommender.load(work.paths.promoted.root)
    assert recommender.catalogue[HAS_IMAGE].any() == came
    assert recommender.for_text("red shirt", 3)


def test_texts_are_read_as_at_the_training_though_those_of_a_larger_catalogue_have_more_dimensions(
    tmp_path, monkeypatch
):
    work = served_shop(tmp_path, "text_only", model=FROZEN)
    before = Recommender.load(work.paths.promoted.root).tower().retriever.item_index.vectors.copy()
    monkeypatch.setattr(lsa, "LEAST_DIMENSIONS", lsa.LEAST_DIMENSIONS + 4)
    pipeline.item_features(work)
    pipeline.refresh(work)
    after = Recommender.load(work.paths.promoted.root).tower().retriever.item_index.vectors
    np.testing.assert_allclose(after, before, atol=1e-5)


def test_photos_of_another_encoder_are_refused(tmp_path):
    work = served_shop(tmp_path, "multimodal", model=FROZEN)
    (work.paths.item_features / "photo_encoder" / "changed.json").write_text("{}")
    with pytest.raises(ArtefactError, match=r"photo features of .* are of another encoder than the promoted towers"):
        pipeline.refresh(work)


def test_towers_that_read_pixels_are_refreshed(tmp_path):
    model = {"user_encoder": "tokens"}
    work = served_shop(tmp_path, "multimodal", baselines=["popularity"], model=model)
    before = Recommender.load(work.paths.promoted.root)
    vectors = np.array(before.tower("multimodal").retriever.item_index.vectors)
    assert before.catalogue[HAS_IMAGE].any()
    pipeline.refresh(open_shop(tmp_path, "multimodal", model=model))
    after = Recommender.load(work.paths.promoted.root)
    np.testing.assert_allclose(after.tower("multimodal").retriever.item_index.vectors, vectors, atol=1e-4)
    assert not (work.paths.promoted.copies(2).root / "images").exists()
