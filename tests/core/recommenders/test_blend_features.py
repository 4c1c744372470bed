"""Candidates and their features, by hand on a catalogue of five items."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from pixrec_core.recommenders._blend_features import (
    COMMON,
    DAY_MS,
    ItemTable,
    MethodLists,
    concatenate,
    feature_names,
    find_candidates,
    linear_feature_names,
    timed_histories,
)
from pixrec_core.recommenders.base import ItemLists

NAN = float("nan")
CATALOGUE = pl.DataFrame(
    {
        "item": list("abcde"),
        "price": [10.0, 20.0, None, 40.0, 5.0],
        "has_image": [True, True, False, True, True],
        "categories": [["shoes", "red"], ["shoes"], ["hats"], [], None],
    },
    schema_overrides={"categories": pl.List(pl.String)},
)
# Item a is sold on days 1, 2 and 10, b on day 3, c on day 9; d and e are never sold.
TABLE = ItemTable.of(CATALOGUE, np.array([0, 0, 1, 2, 0]), np.array([1, 2, 3, 9, 10]) * DAY_MS)


def histories(*histories):
    """Histories as lists of (item, day)."""
    lists = ItemLists.from_lists([[item for item, _ in history] for history in histories])
    days = [day for history in histories for _, day in history]
    return replace(lists, times=np.array(days, np.int64) * DAY_MS)


def lists(*rows):
    """One method's lists, with scores that fall by 1."""
    items = np.array(rows)
    return MethodLists(items, -np.arange(items.shape[1], dtype=np.float32) * np.ones(items.shape, np.float32))


def column(candidates, name):
    names = feature_names(candidates.methods)
    return dict(zip(candidates.items.tolist(), candidates.matrix()[:, names.index(name)].tolist(), strict=True))


def test_candidates_are_the_union_of_the_lists():
    found = find_candidates(
        {"one": lists([0, 1, -1], [4, 3, 2]), "two": lists([1, 2, 3], [4, -1, -1])},
        histories([(4, 11)], [(0, 11)]), TABLE, k=2,
    )  # fmt: skip
    assert list(zip(found.rows.tolist(), found.items.tolist(), strict=True)) == [(0, 0), (0, 1), (0, 2), (1, 3), (1, 4)]
    np.testing.assert_array_equal(found.ranks, [[1, NAN], [2, 1], [NAN, 2], [2, NAN], [1, 1]])
    assert column(found.take(found.rows == 0), "lists") == {0: 1, 1: 2, 2: 1}
    assert column(found.take(found.rows == 0), "rank_fusion")[1] == pytest.approx(1 / 12 + 1 / 11)


def test_seen_items_are_candidates_and_do_not_count_towards_k():
    found = find_candidates({"one": lists([0, 1, 2, 3])}, histories([(0, 11), (1, 11)]), TABLE, k=1)
    assert found.items.tolist() == [0, 1, 2]
    found = find_candidates({"one": lists([2, 0, 1, 3])}, histories([(0, 11), (1, 11)]), TABLE, k=1)
    assert found.items.tolist() == [0, 1, 2], "those right after the last unseen one are candidates too"


def test_scores_are_standardised_over_the_list():
    found = find_candidates({"one": lists([3, 1, 2])}, histories([(0, 11)]), TABLE, k=3)
    assert column(found, "one.z_score") == pytest.approx({3: 1.5**0.5, 1: 0, 2: -(1.5**0.5)})
    equal = MethodLists(np.array([[3, 1]]), np.ones((1, 2), np.float32))
    assert column(find_candidates({"one": equal}, histories([(0, 11)]), TABLE, k=3), "one.z_score") == {3: 0, 1: 0}


def test_features_of_items():
    found = find_candidates({"one": lists([0, 1, 2, 3])}, histories([(0, 10), (1, 12)]), TABLE, k=9)
    assert column(found, "popularity") == pytest.approx({0: np.log(4), 1: np.log(2), 2: np.log(2), 3: 0})
    # The newest 30 % of five interactions are the newest two: items a and c.
    recent = column(found, "recent_popularity_0.3")
    assert recent == pytest.approx({0: np.log(2), 1: 0, 2: np.log(2), 3: 0})
    assert column(found, "trend_0.3")[2] == pytest.approx(np.log(2 / 1.3))
    assert column(found, "days_since_first_sale") == pytest.approx({0: 11, 1: 9, 2: 3, 3: NAN}, nan_ok=True)
    assert column(found, "days_since_last_sale") == pytest.approx({0: 2, 1: 9, 2: 3, 3: NAN}, nan_ok=True)
    assert column(found, "has_photo") == {0: 1, 1: 1, 2: 0, 3: 1}
    ratios = column(found, "price_ratio")
    assert ratios == pytest.approx({0: np.log(10 / 15), 1: np.log(20 / 15), 2: NAN, 3: np.log(40 / 15)}, nan_ok=True)


def test_features_of_seen_items():
    found = find_candidates({"one": lists([0, 1, 2])}, histories([(0, 4), (0, 7), (1, 9), (4, 10)]), TABLE, k=9)
    assert column(found, "seen") == {0: 1, 1: 1, 2: 0}
    assert column(found, "times_seen") == {0: 2, 1: 1, 2: 0}
    assert column(found, "items_since_seen") == pytest.approx({0: 2, 1: 1, 2: NAN}, nan_ok=True)
    assert column(found, "days_since_seen") == pytest.approx({0: 3, 1: 1, 2: NAN}, nan_ok=True)


def test_features_of_the_history():
    found = find_candidates({"one": lists([3], [3])}, histories([(0, 4), (1, 7), (0, 7), (2, 9)], []), TABLE, k=9)
    by_name = dict(zip(COMMON, found.common.T.tolist(), strict=True))
    assert by_name["history_length"] == [4, 0]
    assert by_name["history_items"] == [3, 0]
    assert by_name["history_days"] == pytest.approx([5, NAN], nan_ok=True)
    assert by_name["history_tied"] == [0.25, 1]
    assert by_name["history_repeats"] == [0.25, 1]
    assert by_name["newest_gap_days"] == pytest.approx([2, NAN], nan_ok=True)


def test_a_request_at_the_time_of_the_newest_item_belongs_to_its_visit():
    """The last item of a sequence is its target."""
    sequences = pl.DataFrame({"items": [["a", "b", "c"], ["a", "b"], ["c"]], "timestamps": [[4, 7, 7], [7, 8], [9]]})
    found = timed_histories(sequences, CATALOGUE["item"])
    assert found.same_visit.tolist() == [True, False, False]
    assert found.values.tolist() == [0, 1, 0]
    assert found.times.tolist() == [4, 7, 7]


def test_features_of_the_visit():
    known = replace(histories([(0, 4), (1, 7)], [(2, 7)]), same_visit=np.array([False, True]))
    found = find_candidates({"one": lists([0, 3], [4, 2])}, known, TABLE, k=9)
    assert found.feature("same_visit").tolist() == [0, 0, 1, 1]
    by_name = dict(zip(linear_feature_names(["one"]), found.linear_matrix().T.tolist(), strict=True))
    assert by_name["one.reciprocal_rank_x_same_visit"] == pytest.approx([0, 0, 1 / 12, 1 / 11])
    assert by_name["one.z_score_x_same_visit"] == pytest.approx([0, 0, -1, 1])
    assert by_name["seen_x_same_visit"] == [0, 0, 1, 0]
    unknown = find_candidates({"one": lists([0, 3], [4, 2])}, replace(known, same_visit=None), TABLE, k=9)
    assert unknown.feature("same_visit").tolist() == [0, 0, 0, 0], "by default, a request is a later visit"
    np.testing.assert_array_equal(found.without_visit().matrix(), unknown.matrix())


def test_parts_of_the_histories_keep_whether_they_belong_to_the_same_visit():
    known = replace(histories([(0, 4)], [(1, 7), (2, 8)]), same_visit=np.array([True, False]))
    assert [part.same_visit.tolist() for _, part in known.batches(1)] == [[True], [False]]
    assert known.filter(np.array([True, False, True])).same_visit.tolist() == [True, False]


def test_category_similarity():
    found = find_candidates({"one": lists([0, 1, 2, 3, 4])}, histories([(2, 4), (1, 5)]), TABLE, k=9)
    # a has two categories: red is the rarer one.
    shoes, red = np.log(5 / 2), np.log(5)
    cosine = shoes / np.hypot(shoes, red)
    assert column(found, "category_similarity_newest") == pytest.approx({0: cosine, 1: 1, 2: 0, 3: 0, 4: 0})
    # The history weighs b, the newest, 1 and c 1/2.
    near, far = 1 / np.hypot(1, 0.5), 0.5 / np.hypot(1, 0.5)
    expected = {0: cosine * near, 1: near, 2: far, 3: 0, 4: 0}
    assert column(found, "category_similarity") == pytest.approx(expected)


def test_batches_give_the_candidates_of_all_users():
    both = histories([(0, 4), (1, 7)], [(2, 9)])
    whole = find_candidates({"one": lists([3, 1], [0, 4])}, both, TABLE, k=9)
    parts = [
        find_candidates({"one": lists(ranked)}, part, TABLE, k=9)
        for ranked, (_, part) in zip(([3, 1], [0, 4]), both.batches(1), strict=True)
    ]
    joined = concatenate(parts, [1, 1])
    np.testing.assert_array_equal(joined.matrix(), whole.matrix())
    assert joined.rows.tolist() == whole.rows.tolist()
    assert joined.items.tolist() == whole.items.tolist()


def test_without_a_method_its_candidates_and_its_part_of_the_features_are_gone():
    one, two = lists([0, 1]), lists([1, 2])
    history = histories([(4, 11)])
    both = find_candidates({"one": one, "two": two}, history, TABLE, k=9)
    alone = find_candidates({"two": two}, history, TABLE, k=9)
    np.testing.assert_array_equal(both.of_methods(["two"]).matrix(), alone.matrix())
    assert both.of_methods(["two"]).items.tolist() == [1, 2]


def test_the_item_table_is_the_same_after_save_and_load(tmp_path):
    TABLE.save(tmp_path / "items.safetensors")
    loaded = ItemTable.load(tmp_path / "items.safetensors")
    for name in ItemTable.__dataclass_fields__:
        mine, theirs = getattr(TABLE, name), getattr(loaded, name)
        if name == "categories":
            mine, theirs = mine.toarray(), theirs.toarray()
        np.testing.assert_array_equal(mine, theirs)
