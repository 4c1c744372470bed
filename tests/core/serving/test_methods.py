"""Every promoted method through one recommender, compared with the ranking that its stage wrote."""

import shutil

import numpy as np
import polars as pl
import pytest

from pixrec_core import files
from pixrec_core.data.sequences import read_sequences
from pixrec_core.errors import ArtefactError
from pixrec_core.evaluation.comparison import selection_scores
from pixrec_core.evaluation.validation import selection_users
from pixrec_core.paths import DatasetPaths
from pixrec_core.recommenders.blend import Blend
from pixrec_core.schemas import ITEM, ITEMS, RANK, TEST, TIMESTAMPS, TRAIN_COUNT, USER, VALIDATION
from pixrec_core.serving import Recommender, gate
from pixrec_core.serving.promotion import read_promotion

METHODS = ["blend", "co_occurrence", "ease", "popularity", "text_only"]


@pytest.fixture(scope="module")
def promotion(blended):
    return read_promotion(blended.paths.promoted)


@pytest.fixture
def recommender(blended):
    """A newly loaded recommender, because methods are loaded on first use."""
    return Recommender.load(blended.paths.promoted.root)


@pytest.fixture(scope="module")
def test_users(blended):
    """Users, their histories, and the time of each item."""
    before = [pl.col(name).list.slice(0, pl.col(name).list.len() - 1) for name in (ITEMS, TIMESTAMPS)]
    table = read_sequences(blended.paths, TEST).select(USER, *before)
    return [table[name].to_list() for name in (USER, ITEMS, TIMESTAMPS)]


def test_all_methods_are_promoted_with_their_validation_score(blended, promotion):
    assert sorted(promotion.methods) == METHODS
    users = read_sequences(blended.paths, VALIDATION)[USER].to_numpy()
    assert promotion.selection_users == selection_users(len(users)).sum() >= 30
    assert promotion.methods[promotion.method] == max(promotion.methods.values())
    assert promotion.towers == ("text_only",)


def test_the_blend_is_measured_on_users_that_it_did_not_learn_from(blended):
    ranking = pl.read_parquet(blended.paths.blend.validation_ranking)
    users = read_sequences(blended.paths, VALIDATION)[USER]
    assert set(ranking[USER]) == set(users.filter(selection_users(len(users))))


@pytest.mark.parametrize("method", METHODS)
def test_recommendations_equal_the_ranking_of_the_method(blended, recommender, test_users, method):
    users, histories, times = test_users
    ranking = pl.read_parquet(blended.paths.ranked_methods(["text_only"])[method].ranking).sort(USER, RANK)
    expected = dict(ranking.filter(pl.col(RANK) <= 10).group_by(USER).agg(ITEM).iter_rows())
    of_target = read_sequences(blended.paths, TEST)[TIMESTAMPS].list.last()
    found = {}
    for same_visit in (True, False):
        chosen = [n for n, known in enumerate(times) if (known[-1] == of_target[n]) is same_visit]
        assert chosen
        lists = recommender.for_histories(
            [histories[n] for n in chosen], times=[times[n] for n in chosen], same_visit=same_visit, method=method
        )
        found |= {users[n]: [each.item for each in each_list] for n, each_list in zip(chosen, lists, strict=True)}
    assert found == expected


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_gives_the_lists_of_single_queries_and_seen_items_can_be_filtered(recommender, test_users, method):
    _, histories, times = test_users
    for history, time in zip(histories[:5], times[:5], strict=True):
        (whole,) = recommender.for_histories([history], 1000, times=[time], method=method)
        assert sorted(each.item for each in whole) == recommender.catalogue[ITEM].to_list()
        (unseen,) = recommender.for_histories([history], 5, times=[time], filter_seen=True, method=method)
        assert [each.item for each in unseen] == [each.item for each in whole if each.item not in history][:5]
    batch = recommender.for_histories(histories[:5], 5, times=times[:5], method=method)
    single = [
        recommender.for_histories([history], 5, times=[time], method=method)[0]
        for history, time in zip(histories[:5], times[:5], strict=True)
    ]
    assert [[each.item for each in found] for found in batch] == [[each.item for each in found] for found in single]


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_history_gets_the_popularity_order(recommender, test_users, method):
    catalogue = recommender.catalogue.sort(TRAIN_COUNT, ITEM, descending=[True, False])
    empty, other = recommender.for_histories([[], test_users[1][0]], method=method)
    assert [each.item for each in empty] == catalogue[ITEM].head(10).to_list()
    assert other


def test_scores_agree_with_candidates(recommender, test_users):
    lists = recommender.item_lists(test_users[1][:3])
    for name in METHODS:
        method = recommender.method(name)
        items, values = method.candidates(lists, 5)
        found = np.take_along_axis(method.scores(lists), items, axis=1)
        np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-5)


def test_a_method_is_loaded_when_it_is_asked(served):
    recommender = Recommender.load(served.paths.promoted.root)
    assert list(recommender._methods) == [recommender.promotion.method]
    recommender.for_items([], method="ease")
    assert list(recommender._methods) == [recommender.promotion.method, "ease"]


def test_a_user_query_reads_the_times_of_the_history(blended, recommender):
    user = read_sequences(blended.paths, TEST)[USER][0]
    items, times = recommender.history_with_times(user)
    assert recommender.for_user(user) == recommender.for_histories([items], times=[times])[0]


def test_a_blend_is_not_promoted_without_its_methods(blended, tmp_path):
    shutil.copytree(blended.paths.root, tmp_path / "shop")
    paths = DatasetPaths(tmp_path / "shop")
    method = Blend.load(paths.blend.root).methods[0]
    files.remove(paths.baseline(method).root)
    before = paths.promoted.manifest.read_bytes()
    with pytest.raises(ArtefactError, match=rf"reads {method}, which has no ranking; run the stage `blend` again"):
        gate.promote_unless_worse("shop", blended.dataset_settings, paths, ["text_only"])
    assert paths.promoted.manifest.read_bytes() == before


def test_a_ranking_that_lacks_selection_users_is_refused(blended, tmp_path):
    path = tmp_path / "ranking.parquet"
    with files.replacing(path) as temporary:
        pl.read_parquet(blended.paths.blend.validation_ranking).head(0).write_parquet(temporary)
    with pytest.raises(ArtefactError, match=r"of blend lacks \d+ validation users"):
        selection_scores(blended.paths, {"blend": path})


@pytest.mark.parametrize("method", METHODS)
def test_lists_with_allowed_items_are_the_whole_list_without_the_others(recommender, test_users, method):
    lists = recommender.item_lists(test_users[1][:4])
    answering = recommender.method(method)
    whole, _ = answering.candidates(lists, answering.n_items)
    allowed = np.arange(answering.n_items) % 4 == 1
    for k in (3, 1000):
        items, scores = answering.candidates(lists, k, allowed)
        assert items.shape == scores.shape == (4, k)
        for found, all_items in zip(items, whole, strict=True):
            expected = all_items[allowed[all_items]][:k]
            assert sorted(found[: len(expected)]) == sorted(expected) if k > len(expected) else allowed[found].all()
            assert (found[len(expected) :] == -1).all()
            if method != "blend":  # its features of a list depend on the list's other items
                assert found[: len(expected)].tolist() == expected.tolist()
    none, _ = answering.candidates(lists, 3, np.zeros(answering.n_items, np.bool_))
    assert (none == -1).all()
