import hashlib

import polars as pl
import pytest

from pixrec_core.errors import ArtefactError
from pixrec_core.report.inputs import Inputs, read_inputs
from pixrec_core.report.pictures import Album, galleries, neighbourhoods
from tests.core.report import example

BOTH = ("multimodal", "text_only")


def album(inputs: Inputs) -> Album:
    return Album(inputs.paths, inputs.titles)


def labels(*users: str) -> list[str]:
    return sorted(hashlib.sha256(user.encode()).hexdigest()[:8] for user in users)


@pytest.fixture
def inputs(paths):
    return read_inputs("shop", paths, BOTH)


def test_every_user_is_shown_once_under_its_kind(inputs):
    shown = {g.title: g for g in galleries(inputs, album(inputs))}
    random = [s.label for s in shown["Random users"].users]
    assert random == labels(*example.BOUGHT)[:4]
    assert shown["Random users"].total == 6
    kinds = {
        "Found only with photos": ("u0", "u1"),
        "Found only without photos": ("u3",),
        "Worst misses": ("u3", "u4", "u5"),
    }
    for title, users in kinds.items():
        left = [label for label in labels(*users) if label not in random]
        if title in shown:
            assert shown[title].total == len(users)
            assert {s.label for s in shown[title].users} <= set(left)
        else:
            assert left == []
    all_labels = [s.label for g in shown.values() for s in g.users]
    assert sorted(all_labels) == labels(*example.BOUGHT)


def test_lists_say_rank_hit_and_seen(inputs):
    users = {s.label: s for g in galleries(inputs, album(inputs)) for s in g.users}
    (label,) = labels("u1")
    full, text = users[label].lists
    assert (full.method, full.rank, text.method, text.rank) == ("multimodal", 2, "text_only", None)
    assert [(t.title, t.hit, t.seen) for t in full.tiles] == [
        ("title of i20", False, False),
        ("title of i11", True, False),
        (example.HOSTILE["i00"], False, True),
    ]
    assert len(text.tiles) == 10
    assert (users[label].earlier, len(users[label].history)) == (1, 8)
    (late,) = labels("u4")
    assert [one.rank for one in users[late].lists] == [12, 12]


def test_misses_past_the_ranking_come_before_low_ranks(paths):
    users = {f"v{n}": ["i00", "i01", "i02"] for n in range(9)}
    paths.sequences.unlink()
    example.write_sequences(paths, users)
    for variant in BOTH:
        example.write_ranking(paths, variant, {u: [*example.OTHERS, "i02"] for u in list(users)[:3]})
    inputs = read_inputs("shop", paths, BOTH)
    worst = galleries(inputs, album(inputs))[-1]
    ranks = [user.lists[0].rank for user in worst.users]
    assert worst.total == 9
    assert ranks == sorted(ranks, key=lambda rank: rank is not None)
    assert None in ranks


def test_neighbours_by_hand(paths):
    angles = {"i00": (1.0, 0.0), "i01": (0.0, 1.0), "i02": (0.8, 0.6), "i29": (-1.0, 0.0)}
    for variant in BOTH:
        example.write_vectors(paths, variant, angles)
    inputs = read_inputs("shop", paths, BOTH)
    around = {n.item.title: n.nearest for n in neighbourhoods(inputs, album(inputs))}
    first = [tile.title for tile in around[example.HOSTILE["i00"]]["multimodal"]]
    # cosines with i00: i02 0.8, i01 0, i29 -1
    assert first == [example.HOSTILE["i02"], example.HOSTILE["i01"], "title of i29"]
    assert list(around)[-1] == "title of i29"  # the only one without a photo


def test_vectors_of_other_items_are_refused(paths):
    example.write_vectors(paths, "multimodal", {"i00": (1.0, 0.0)})
    inputs_file = paths.variant("multimodal").item_vectors / "items.parquet"
    pl.DataFrame({"item": ["i00", "i01"]}).write_parquet(inputs_file)
    inputs = read_inputs("shop", paths, BOTH)
    with pytest.raises(ArtefactError, match=r"has 1 vectors but .* has 2 items"):
        neighbourhoods(inputs, album(inputs))


def test_damaged_vectors_are_named(paths):
    (paths.variant("text_only").item_vectors / "vectors.safetensors").write_bytes(b"not that")
    inputs = read_inputs("shop", paths, BOTH)
    with pytest.raises(
        ArtefactError, match=r"vectors.safetensors is damaged.*run the stage `item_vectors` with --force"
    ):
        neighbourhoods(inputs, album(inputs))
