import pytest

from pixrec_core.report import tables
from pixrec_core.report.inputs import Difference, InputsWorth, Protocol
from tests.core.report import example


def protocol(difference: float, low: float, high: float, a: str = "multimodal", b: str = "text_only") -> Protocol:
    pair = {"a": a, "b": b, "metric": "Recall@10", "difference": difference, "low": low, "high": high}
    return Protocol.model_validate(example.protocol(list(example.RECALL)) | {"paired": [pair]})


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((0.04, 0.01, 0.07), "Better with photos: "),
        ((-0.04, -0.07, -0.01), "Worse with photos: "),
        ((0.04, -0.01, 0.09), "No significant effect of photos: "),
        ((0.0, 0.0, 0.0), "No significant effect of photos: "),
        ((0.04, 0.0, 0.09), "No significant effect of photos: "),
    ],
)
def test_the_sentence_on_photos_follows_the_interval(numbers, words):
    assert tables.photo_sentence(protocol(*numbers)).startswith(words)


def test_the_sentence_on_photos_has_the_figures():
    sentence = tables.photo_sentence(protocol(0.04, -0.01, 0.09)).replace("\u00a0", " ")
    assert sentence == (
        "No significant effect of photos: ten recommendations contain the next item for 14.00 % of users with text and "
        "photos and for 10.00 % with text alone (+4.00 points, 95 % interval \N{MINUS SIGN}1.00 to +9.00)."
    )


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        (None, "Whether what they show matters is not measured: it takes the variant shuffled_images."),
        ((0.03, 0.01, 0.05), "The gain is due to what they show: compared with photos of other items, +3.00 points"),
        ((0.01, -0.01, 0.03), "The gain is not shown to be due to what they show: compared with photos of other items"),
    ],
)
def test_a_gain_is_compared_with_photos_of_other_items(numbers, words):
    compared = protocol(0.04, 0.01, 0.07)
    if numbers:
        compared.paired.extend(protocol(*numbers, b="shuffled_images").paired)
    assert words in tables.photo_sentence(compared)
    assert words not in tables.photo_sentence(protocol(0.04, -0.01, 0.07))


def test_a_difference_is_reversed_if_needed():
    reversed_pair = tables.paired_difference(
        protocol(-0.04, -0.07, -0.01, a="text_only", b="multimodal"), "multimodal", "text_only"
    )
    expected = {"difference": 0.04, "low": 0.01, "high": 0.07}
    assert reversed_pair == Difference(a="multimodal", b="text_only", metric="Recall@10", **expected)


def test_a_pair_that_was_not_compared_has_no_difference():
    assert tables.paired_difference(protocol(0.1, 0.1, 0.1, b="popularity"), "multimodal", "text_only") is None


def test_bars_of_the_methods_table():
    cells = tables.methods_table(protocol(0, 0, 0), ["Recall@10"])
    assert list(cells) == ["co_occurrence", "multimodal", "text_only", "popularity"]
    best, second = cells["co_occurrence"]["Recall@10"], cells["multimodal"]["Recall@10"]
    # the bar's full length is the highest upper end, 0.21
    assert (best.best, best.at, best.start, best.end) == (True, 95.24, 90.48, 100.0)
    assert (second.best, second.at, second.start, second.end) == (False, 66.67, 61.9, 71.43)


def test_nothing_found_has_no_best():
    nothing = {"value": 0.0, "low": 0.0, "high": 0.0}
    empty = Protocol.model_validate({"users": 3, "methods": {"popularity": {"Recall@10": nothing}}})
    assert not tables.methods_table(empty, ["Recall@10"])["popularity"]["Recall@10"].best
    assert tables.served_sentence(empty, None).startswith("No method found the next item")


def test_descriptive_metrics_have_no_best_value_and_their_own_unit():
    some = example.protocol(["popularity"])
    some["methods"]["popularity"] |= {"novelty@10": {"value": 7.25}, "repeats@10": {"value": 0.25}}
    cells = tables.methods_table(Protocol.model_validate(some), ["Recall@10", "novelty@10", "repeats@10"])["popularity"]
    assert {metric: cell.best for metric, cell in cells.items()} == {
        "Recall@10": True, "novelty@10": False, "repeats@10": False,
    }  # fmt: skip
    assert [tables.format_metric(metric, cell.estimate.value) for metric, cell in cells.items()] == [
        "5.00",
        "7.2",
        "25.00",
    ]
    assert tables.format_metric("novelty@10", None) == "\N{EN DASH}"


def test_claims_have_the_measured_ratio():
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
    rows = tables.groups_table(some)
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


def test_of_a_stage_with_a_balance_the_balance_and_the_profile_are_shown():
    stats = {
        "rows": 3, "duplicates": 1, "truncated": False,
        "balance": {
            "read": 6, "kept": 3, "rejected": {"not JSON": 1, "it must be in milliseconds": 1},
            "dropped": {"duplicates": 1},
        },
        "profile": {"rows": 3, "share_tied": 0.25},
    }  # fmt: skip
    assert tables.facts(stats) == [
        ("read", "6"), ("kept", "3"), ("rejected: not JSON", "1"), ("rejected: it must be in milliseconds", "1"),
        ("dropped: duplicates", "1"), ("rows", "3"), ("share tied", "25.00\u00a0%"),
    ]  # fmt: skip


@pytest.mark.parametrize(("value", "text"), [(1000, "1,000"), (0.893, "0.893"), (2.0, "2"), (0, "0"), (1e-9, "0")])
def test_numbers(value, text):
    assert tables.format_number(value) == text


def test_a_value_that_rounds_to_zero_has_no_minus_sign():
    assert [tables.points(value) for value in (-0.0, -1e-9, 1e-9, -0.01)] == ["+0.00", "+0.00", "+0.00", "\u22121.00"]
    assert tables.percent(-1e-9) == "0.00"


def test_the_sentence_on_held_out_items_follows_the_split():
    assert tables.held_out_sentence({}, refit=True) is None
    assert (
        tables.held_out_sentence({"split": "leave_one_out", "cuts": {}}, refit=False)
        == "Tested on the last item of each user with three or more items."
    )
    drawn = {"split": "leave_one_out", "measured_users": 50_000, "test": {"targets": 60_000}}
    assert str(tables.held_out_sentence(drawn, refit=False)).endswith(" 50,000 of 60,000 such users are drawn.")
    cuts = {"validation": "2020-01-01T00:00:00+00:00", "test": "2020-02-01T00:00:00+00:00"}
    sentence = tables.held_out_sentence({"split": "time", "cuts": cuts}, refit=True)
    assert sentence == f"Tested on the first item of each user from 2020-02-01T00:00:00+00:00 on. {tables.REFIT}"


SHARE = "ten recommendations contain the next item for"
GAP = "+6.00 points, 95 % interval +3.00 to +9.00"
LOSS = "\N{MINUS SIGN}6.00 points, 95 % interval \N{MINUS SIGN}9.00 to \N{MINUS SIGN}3.00"


@pytest.mark.parametrize(
    ("served", "sentence"),
    [
        (None, f"Co-occurrence is the best of 4 methods: {SHARE} 20.00 % of users."),
        (
            "co_occurrence",
            (
                f"Co-occurrence serves: {SHARE} 20.00 % of users. "
                f"Gain over Multimodal, the best other single method: {GAP}. Compared with Text only: 10.00 %."
            ),
        ),
        (
            "multimodal",
            (
                f"Multimodal serves: {SHARE} 14.00 % of users. "
                f"Gain over Co-occurrence, the best other single method: {LOSS}. Compared with Text only: 10.00 %."
            ),
        ),
        (
            "text_only",
            (
                f"Text only serves: {SHARE} 10.00 % of users. "
                "Compared with Co-occurrence, the best other single method: 20.00 %."
            ),
        ),
    ],
)
def test_the_served_method_and_its_gain(served, sentence):
    compared = protocol(-0.06, -0.09, -0.03, a="multimodal", b="co_occurrence")
    assert tables.served_sentence(compared, served).replace("\u00a0", " ") == sentence


def test_figures_of_a_refused_training_are_not_those_of_what_serves():
    compared = protocol(-0.06, -0.09, -0.03, a="multimodal", b="co_occurrence")
    sentence = tables.served_sentence(compared, "multimodal", is_measured=False)
    assert " is the best of " in sentence
    assert sentence.endswith(f". {tables.EARLIER_SERVES}")


def test_inputs_are_sorted_kinds_first_then_by_what_is_lost_without_them():
    groups = InputsWorth.model_validate(example.inputs_worth()).protocols["seen_allowed"]
    names, rows = tables.inputs_table(groups)
    assert names == ["everyone", "cold"], "categories are not in this table"
    assert [name for name, _ in rows] == ["photos", "co_occurrence", "ease"]
    assert [loss.value for loss in rows[1][1]] == [0.05, 0.05]
    assert tables.inputs_table({}) == ([], [])


def test_photos_of_all_groups_share_one_axis():
    groups = InputsWorth.model_validate(example.inputs_worth()).protocols["seen_allowed"]
    rows = tables.photo_rows(groups)
    assert [row.group for row in rows] == ["everyone", "cold", "category: <b>|x"]
    assert (rows[0].start, rows[0].at, rows[0].end, rows[0].zero) == (0, 50, 100, 100), "from -4 to 0 points"


def test_the_best_method_of_the_sentence_is_the_best_by_its_figure():
    """Text only has the highest NDCG@10, co-occurrence the highest Recall@10, which the sentence gives."""
    given = example.protocol(list(example.RECALL)) | {"paired": []}
    given["methods"]["text_only"]["NDCG@10"] = {"value": 0.9, "low": 0.9, "high": 0.9}
    compared = Protocol.model_validate(given)
    assert tables.served_sentence(compared, None).startswith("Co-occurrence is the best of 4 methods")
    served = tables.served_sentence(compared, "multimodal")
    assert "Compared with Co-occurrence, the best other single method: 20.00" in served
