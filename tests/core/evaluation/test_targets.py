import polars as pl
import pytest

from pixrec_core.evaluation.targets import Targets
from pixrec_core.paths import DatasetPaths
from tests.core import sequences_file

BOUGHT = {
    "u": ["a", "b", "c", "d"],
    "v": ["a", "c", "a"],
    "w": ["b", "a", "a", "b", "c", "a", "e"],
    "x": ["a", *"bcbcbcbcbcb", "e"],
}


@pytest.fixture
def paths(tmp_path):
    return DatasetPaths.of(tmp_path, "tiny")


def write(paths, lists):
    train = lists.filter(pl.col("split") == "train")["items"].to_list()
    sequences_file.write(paths, sequences_file.catalogue(train, "abcdef", imageless="e"), lists)


def test_facts_of_each_target(paths):
    write(paths, sequences_file.sequences(BOUGHT, tied="v"))
    targets = Targets.read(paths)
    assert targets.users.to_list() == list("uvwx")
    assert targets.items.gather(targets.table["item_index"]).to_list() == ["d", "a", "e", "e"]
    assert targets.table["repeat"].to_list() == [False, True, False, False]
    assert targets.shares() == {"share_tied": 0.25, "share_cold": 0.75, "share_repeat_targets": 0.25}
    seen = targets.seen.group_by("user_index").agg(pl.col("item_index").sort()).sort("user_index")
    assert seen["item_index"].to_list() == [[0, 1, 2], [0, 2], [0, 1, 2], [0, 1, 2]]


def test_targets_of_some_users(paths):
    write(paths, sequences_file.sequences(BOUGHT, tied="v"))
    some = Targets.read(paths).of_users(pl.Series(["x", "v"]))
    assert some.users.to_list() == ["v", "x"]
    assert some.table["user_index"].to_list() == [0, 1]
    assert some.items.gather(some.table["item_index"]).to_list() == ["a", "e"]
    seen = some.seen.group_by("user_index").agg(pl.col("item_index").sort()).sort("user_index")
    assert seen.rows() == [(0, [0, 2]), (1, [0, 1, 2])]


def test_groups(paths):
    write(paths, sequences_file.sequences(BOUGHT, tied="v"))
    members = {name: "".join(u for u, m in zip("uvwx", g, strict=True) if m) for name, g in groups(paths).items()}
    # Training holds: u a b; v a; w b a a b c; x a b c b c b c b c b c. So a 5, b 8, c 6 of 19, and b, c are the head.
    assert members == {
        "warm": "v", "cold": "uwx", "head": "", "tail": "uvwx", "with image": "uv", "without image": "wx",
        "tied": "v", "not tied": "uwx", "repeat": "v",
        "history 1-2": "v", "history 3-5": "u", "history 6-10": "w", "history 11+": "x",
    }  # fmt: skip


def groups(paths):
    return {name: belongs.tolist() for name, belongs in Targets.read(paths).groups().items()}


def test_the_head_is_the_fewest_items_with_half_of_the_interactions(paths):
    # Training: a 2, b 1, c 1. a alone has half.
    write(paths, sequences_file.sequences({"u": [*"aab", "d", "a"], "v": [*"c", "d", "b"]}))
    assert groups(paths)["head"] == [True, False]
