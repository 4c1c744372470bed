"""What inputs are worth, by hand on a few users."""

import numpy as np
import polars as pl
import pytest

from pixrec_core.evaluation import inputs
from pixrec_core.evaluation.inputs import ALL, InputRanks, summarise_inputs
from pixrec_core.evaluation.targets import Targets
from tests.core import sequences_file

#: Text, categories and sales in training of each item.
ITEMS = {
    "a": ("one", ["shoes", "red"], 5),
    "b": ("one two three", ["shoes"], 5),
    "c": ("one two three four", ["shoes"], 0),
    "d": ("one two three four five", ["hats\n|\x07"], 2),
}


@pytest.fixture
def measured(monkeypatch):
    monkeypatch.setattr(inputs, "MIN_USERS", 1)
    catalogue = sequences_file.catalogue([], list(ITEMS)).with_columns(
        title=pl.Series([text for text, *_ in ITEMS.values()]),
        categories=pl.Series([categories for _, categories, _ in ITEMS.values()]),
        train_count=pl.Series([count for *_, count in ITEMS.values()]),
    )
    lists = {"u1": "bcda", "u2": "acdb", "u3": "abdc", "u4": "abcd", "u5": "abca"}
    sequences = sequences_file.sequences({user: list(items) for user, items in lists.items()})
    targets = Targets.of(catalogue, sequences.filter(pl.col("split") == "test").sort("user"))
    users = pl.Series(["u1", "u2", "u3", "u5"])  # u4 was not measured
    ranks = {ALL: [1, 2, 10, 3], "photos": [1, 11, np.inf, 3], "ease": [4, 2, 10, 3]}
    both = {name: np.stack([np.array(each, float)] * 2, axis=1) for name, each in ranks.items()}
    return summarise_inputs(InputRanks(users, both), targets, catalogue)


def test_the_loss_is_the_mean_difference_over_the_users_of_a_group(measured):
    groups = measured["protocols"]["seen_allowed"]
    assert measured["users"] == groups["everyone"]["users"] == 4
    assert groups["everyone"]["whole"]["Recall@10"]["value"] == 1
    lost = groups["everyone"]["lost"]
    assert lost["photos"]["Recall@10"]["value"] == 0.5
    assert lost["photos"]["NDCG@10"]["value"] == pytest.approx((1 / np.log2(3) + 1 / np.log2(11)) / 4)
    assert lost["ease"]["NDCG@10"]["value"] == pytest.approx((1 - 1 / np.log2(5)) / 4)
    assert 0 <= lost["photos"]["Recall@10"]["low"] < 0.5 < lost["photos"]["Recall@10"]["high"] <= 1
    assert groups["cold"]["users"] == 1
    assert groups["cold"]["lost"]["photos"]["Recall@10"] == {"value": 1, "low": 1, "high": 1}


def test_groups_by_repeat_text_and_category(measured):
    allowed, filtered = (measured["protocols"][name] for name in ("seen_allowed", "seen_filtered"))
    assert allowed["repeat"]["users"] == 1
    assert "repeat" not in filtered, "filtered, their target is no candidate"
    assert filtered["everyone"]["users"] == 3
    assert allowed["poor text"]["users"] == allowed["text: shortest quarter"]["users"] == 2  # a twice
    assert {name: each["users"] for name, each in allowed.items() if name.startswith("category")} == {
        "category: red": 2
    }, "all users have shoes, which says nothing; nobody has a hat"


def test_names_of_categories_are_printable():
    names = inputs._category_groups(pl.Series([["hats\n|\x07"], ["shoes"]]))
    assert list(names) == ["category: hats |\ufffd", "category: shoes"]


def test_a_quarter_of_many_texts_of_one_length_is_left_out():
    """Nine of ten texts have two words: the shortest quarter would be nearly all, the next two empty."""
    catalogue = sequences_file.catalogue([], list("abcdefghij")).with_columns(
        title=pl.Series(["one two"] * 9 + ["one two three"])
    )
    sequences = sequences_file.sequences({f"u{item}": [*"abc", item] for item in "abcdefghij"})
    targets = Targets.of(catalogue, sequences.filter(pl.col("split") == "test").sort("user"))
    groups = inputs._groups(targets, catalogue)
    assert [name for name in groups if "text" in name] == ["text: longest quarter"]
