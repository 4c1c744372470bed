import pytest

from pixrec_core.report import tables
from pixrec_core.report.inputs import Difference, Protocol
from tests.core.report import example


def protocol(difference: float, low: float, high: float, a: str = "multimodal", b: str = "text_only") -> Protocol:
    pair = {"a": a, "b": b, "metric": "Recall@10", "difference": difference, "low": low, "high": high}
    return Protocol.model_validate(example.protocol(list(example.RECALL)) | {"paired": [pair]})


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((0.04, 0.01, 0.07), "Seeing helps: "),
        ((-0.04, -0.07, -0.01), "Seeing hurts here: "),
        ((0.04, -0.01, 0.09), "Cannot tell whether seeing helps: "),
        ((0.0, 0.0, 0.0), "Cannot tell whether seeing helps: "),
        ((0.04, 0.0, 0.09), "Cannot tell whether seeing helps: "),
    ],
)
def test_verdict_is_honest(numbers, words):
    assert tables.verdict(protocol(*numbers)).startswith(words)


def test_verdict_says_the_figures():
    said = tables.verdict(protocol(0.04, -0.01, 0.09)).replace("\u00a0", " ")
    assert said == (
        "Cannot tell whether seeing helps: ten suggestions hold the next item for 14.00 % of users with text and "
        "photos and for 10.00 % with text alone, +4.00 points (95 % interval \N{MINUS SIGN}1.00 to +9.00), which "
        "includes no difference at all."
    )


def test_difference_is_turned_the_right_way_round():
    turned = tables.seeing(protocol(-0.04, -0.07, -0.01, a="text_only", b="multimodal"))
    expected = {"difference": 0.04, "low": 0.01, "high": 0.07}
    assert turned == Difference(a="multimodal", b="text_only", metric="Recall@10", **expected)


def test_other_pairs_are_no_answer():
    assert tables.seeing(protocol(0.1, 0.1, 0.1, b="popularity")) is None


def test_headline_bars():
    cells = tables.headline(protocol(0, 0, 0), ["Recall@10"])
    assert list(cells) == ["co_occurrence", "multimodal", "text_only", "popularity"]
    best, second = cells["co_occurrence"]["Recall@10"], cells["multimodal"]["Recall@10"]
    # the bar's full length is the highest upper end, 0.21
    assert (best.best, best.at, best.start, best.end) == (True, 95.24, 90.48, 100.0)
    assert (second.best, second.at, second.start, second.end) == (False, 66.67, 61.9, 71.43)


def test_nothing_found_has_no_best():
    nothing = {"value": 0.0, "low": 0.0, "high": 0.0}
    empty = Protocol.model_validate({"users": 3, "methods": {"popularity": {"Recall@10": nothing}}})
    assert not tables.headline(empty, ["Recall@10"])["popularity"]["Recall@10"].best
    assert tables.leader(empty) == "No method found any next item among its first ten."


def test_what_lists_are_like_has_no_best_and_its_own_unit():
    some = example.protocol(["popularity"])
    some["methods"]["popularity"] |= {"novelty@10": {"value": 7.25}, "repeats@10": {"value": 0.25}}
    cells = tables.headline(Protocol.model_validate(some), ["Recall@10", "novelty@10", "repeats@10"])["popularity"]
    assert {metric: cell.best for metric, cell in cells.items()} == {
        "Recall@10": True, "novelty@10": False, "repeats@10": False,
    }  # fmt: skip
    assert [tables.figure(metric, cell.estimate.value) for metric, cell in cells.items()] == ["5.00", "7.2", "25.00"]
    assert tables.figure("novelty@10", None) == "\N{EN DASH}"


def test_claims_stand_beside_the_measurement():
    first, ten = tables.claims(protocol(0.04, 0.01, 0.07))
    assert (first.metric, first.paper, first.difference) == ("Recall@1", 3.0, None)
    assert (ten.metric, ten.paper, ten.ratio) == ("Recall@10", 1.4, pytest.approx(1.4))


def test_ratio_over_nothing_is_none():
    assert tables.Claim("Recall@1", text_only=0.0, multimodal=0.1, paper=3.0, difference=None).ratio is None


def test_groups_in_reading_order():
    group = {"users": 1, "methods": {"text_only": {"Recall@10": 0.5}, "popularity": {"Recall@10": None}}}
    names = ["history 11+", "history 1-2", "a new one", "cold", "warm"]
    some = Protocol.model_validate(
        example.protocol(["text_only", "popularity"]) | {"groups": dict.fromkeys(names, group)}
    )
    rows = tables.by_group(some)
    assert [row[0] for row in rows] == ["warm", "cold", "history 1-2", "history 11+", "a new one"]
    assert rows[0][2] == {"text_only": (0.5, True), "popularity": (None, False)}


def test_facts_are_readable():
    stats = {
        "users": 12345,
        "share_tied": 0.25,
        "seconds": 3.2,
        "x_sha256": "ab",
        "why": {"404": 2},
        "source": "hm",
        "n": None,
    }
    assert tables.facts(stats) == [
        ("users", "12,345"),
        ("share tied", "25.00\u00a0%"),
        ("why: 404", "2"),
        ("source", "hm"),
    ]


@pytest.mark.parametrize(("value", "text"), [(1000, "1,000"), (0.893, "0.893"), (2.0, "2"), (0, "0"), (1e-9, "0")])
def test_numbers(value, text):
    assert tables.number(value) == text


def test_what_is_tested_on_follows_the_split():
    assert tables.held_out({}) is None
    assert tables.held_out({"split": "leave_one_out", "cuts": {}}) == "Tested on the last item of each user."
    cuts = {"validation": "2020-01-01T00:00:00+00:00", "test": "2020-02-01T00:00:00+00:00"}
    told = tables.held_out({"split": "time", "cuts": cuts})
    assert told == "Tested on the first item of each user from 2020-02-01T00:00:00+00:00 on."
