"""End to end on a small sequences.duckdb: real files in, real files out."""

import json
from math import log2

import polars as pl
import pytest

from pixrec_core import files
from pixrec_core.engine import LOCAL
from pixrec_core.errors import MissingArtefactError
from pixrec_core.evaluation.evaluate import evaluate_rankings
from pixrec_core.models.encoders.build import build_item_features
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import OUTCOME_SCHEMA, RANKING_SCHEMA
from pixrec_core.settings import ModelSettings, RetrievalSettings
from tests.core import photos_folder, sequences_file

ITEMS = "abcdef"
BOUGHT = {"u": "abcd", "v": "acca", "w": "abe"}
# Each list holds the whole catalogue. Ranks of the targets d, a, e; then without the seen items.
LISTS = {
    "popularity": "abcdef",  # 4 1 5; u 1, w 3
    "repeat_last": "fedcba",  # 3 6 2; u 3, w 2
    "multimodal": "dafecb",  # 1 2 4; u 1, w 3
    "text_only": "fabdec",  # 4 2 5; u 2, w 3
}


def write_ranking(path, items, users=BOUGHT):
    rows = [(user, rank, item, -float(rank)) for user in users for rank, item in enumerate(items, 1)]
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows, RANKING_SCHEMA, orient="row").write_parquet(path)


@pytest.fixture
def paths(tmp_path):
    paths = DatasetPaths.of(tmp_path, "tiny")
    items = sequences_file.catalogue(["ab", "ac", "a"], ITEMS, imageless="e")
    sequences_file.write(paths, items, sequences_file.sequences(BOUGHT, tied="u"))
    photos_folder.write(paths, dict.fromkeys("abcd", "red") | {"f": "blue"})
    build_item_features(ModelSettings(), paths, LOCAL)
    for name in ("popularity", "repeat_last"):
        write_ranking(paths.baseline(name).ranking, LISTS[name])
    for name in ("multimodal", "text_only"):
        write_ranking(paths.variant(name).ranking, LISTS[name])
    return paths


@pytest.fixture
def metrics(paths):
    evaluate_rankings(RetrievalSettings(depth=4), paths, ("multimodal", "text_only", "not_ranked_yet"))
    return json.loads(paths.metrics.read_text())


def test_the_table_has_all_values(metrics, paths):
    rows = pl.read_csv(paths.metrics_table)
    assert rows.columns == ["protocol", "method", "metric", "value", "low", "high", "users"]
    for protocol, method, metric, value, low, high, users in rows.iter_rows():
        found = metrics["protocols"][protocol]
        assert found["methods"][method][metric] == pytest.approx({"value": value, "low": low, "high": high})
        assert found["users"] == users
    assert len(rows) == sum(len(m) for p in metrics["protocols"].values() for m in p["methods"].values())


def test_facts_of_the_dataset(metrics):
    assert {name: value for name, value in metrics.items() if name != "protocols"} == {
        "generative": {},
        "users": 3, "items": 6, "depth": 4,
        "share_tied": pytest.approx(1 / 3), "share_cold": pytest.approx(2 / 3),
        "share_repeat_targets": pytest.approx(1 / 3),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("protocol", "method", "ranks"),
    [
        ("seen_allowed", "popularity", [4, 1, None]),
        ("seen_allowed", "repeat_last", [3, None, 2]),
        ("seen_allowed", "multimodal", [1, 2, 4]),
        ("seen_allowed", "text_only", [4, 2, None]),
        ("seen_filtered", "popularity", [1, 3]),
        ("seen_filtered", "repeat_last", [3, 2]),
        ("seen_filtered", "multimodal", [1, 3]),
        ("seen_filtered", "text_only", [2, 3]),
    ],
)
def test_metrics(metrics, protocol, method, ranks):
    figures = metrics["protocols"][protocol]["methods"][method]
    expected = {
        "Recall@1": [rank == 1 for rank in ranks],
        "Recall@5": [rank is not None for rank in ranks],
        "NDCG@10": [1 / log2(1 + rank) if rank else 0 for rank in ranks],
        "MRR": [1 / rank if rank else 0 for rank in ranks],
    }
    for metric, values in expected.items():
        assert figures[metric]["value"] == pytest.approx(sum(values) / len(values)), metric
    for metric in expected:
        assert figures[metric]["low"] <= figures[metric]["value"] <= figures[metric]["high"], metric


def test_coverage_is_of_the_whole_catalogue(metrics):
    whole, rest = (metrics["protocols"][name]["methods"]["popularity"] for name in ("seen_allowed", "seen_filtered"))
    assert whole["coverage@10"] == {"value": 1, "low": 1, "high": 1}
    assert rest["coverage@10"]["value"] == 4 / 6  # u sees d e f, w sees c d e f


def test_properties_of_lists(metrics):
    whole, rest = (metrics["protocols"][name]["methods"]["popularity"] for name in ("seen_allowed", "seen_filtered"))
    # Everybody's list holds all: ten pairs of photos, four of which are of another colour. u has three, v two, w two.
    assert whole["image_diversity@10"] == {
        "value": pytest.approx(4 / 10),
        **dict.fromkeys(("low", "high"), pytest.approx(4 / 10)),
    }
    assert whole["repeats@10"]["value"] == pytest.approx((3 + 2 + 2) / 6 / 3)
    # Training holds a three times, b and c once.
    assert whole["novelty@10"]["value"] == pytest.approx((log2(5 / 3) + 5 * log2(5)) / 6)
    assert rest["repeats@10"]["value"] == 0
    assert rest["novelty@10"]["value"] == pytest.approx(log2(5))


def test_users_and_groups(metrics):
    allowed, filtered = metrics["protocols"]["seen_allowed"], metrics["protocols"]["seen_filtered"]
    assert (allowed["users"], allowed["left_out"]) == (3, 0)
    assert (filtered["users"], filtered["left_out"]) == (2, 1)
    assert {name: group["users"] for name, group in allowed["groups"].items()} == {
        "warm": 1, "cold": 2, "head": 1, "tail": 2, "with image": 2, "without image": 1, "tied": 1, "not tied": 2,
        "repeat": 1, "history 1-2": 1, "history 3-5": 2,
    }  # fmt: skip
    assert allowed["groups"]["without image"]["methods"]["multimodal"]["MRR"] == 1 / 4
    assert "warm" not in filtered["groups"]


def test_paired_differences(metrics):
    paired = {(row["a"], row["b"], row["metric"]): row for row in metrics["protocols"]["seen_allowed"]["paired"]}
    assert set(paired) == {
        ("multimodal", "text_only", "NDCG@10"), ("multimodal", "text_only", "Recall@10"),
        ("multimodal", "popularity", "NDCG@10"), ("text_only", "popularity", "NDCG@10"),
        ("multimodal", "popularity", "Recall@10"), ("text_only", "popularity", "Recall@10"),
        ("repeat_last", "popularity", "NDCG@10"), ("repeat_last", "popularity", "Recall@10"),
        ("repeat_last", "text_only", "NDCG@10"), ("repeat_last", "text_only", "Recall@10"),
        ("repeat_last", "multimodal", "NDCG@10"), ("repeat_last", "multimodal", "Recall@10"),
    }  # fmt: skip
    row = paired["multimodal", "text_only", "NDCG@10"]
    assert row["difference"] == pytest.approx((1 - 1 / log2(5) + 1 / log2(5)) / 3)
    assert 0 <= row["low"] <= row["difference"] <= row["high"]


def test_outcomes(paths, metrics):
    outcomes = pl.read_parquet(paths.outcomes)
    assert outcomes.schema == OUTCOME_SCHEMA
    assert outcomes.filter(pl.col("method") == "popularity").rows() == [
        ("popularity", "u", "d", 4), ("popularity", "v", "a", 1), ("popularity", "w", "e", None),
    ]  # fmt: skip


def test_generative_rankings_are_compared_with_the_dense_one_over_their_users(paths):
    folder = paths.variant("multimodal").generative
    for method, items in (("dense", LISTS["multimodal"]), ("beams", "bdafec")):
        write_ranking(folder / f"{method}.parquet", items, "uw")
    files.write_json(folder / "speeds.json", {"dense": 200.0, "beams": 12.5})
    evaluate_rankings(RetrievalSettings(depth=4), paths, ("multimodal", "text_only"))
    (variant, own), = json.loads(paths.metrics.read_text())["generative"].items()  # fmt: skip
    assert (variant, own["users"]) == ("multimodal", 2)
    assert own["users_per_second"] == {"dense": 200.0, "beams": 12.5}
    allowed, filtered = own["protocols"]["seen_allowed"], own["protocols"]["seen_filtered"]
    # Targets d and e; dense ranks 1 and 4, beams 2 and past 4. Without a, b, c of u and a, b of w: 1, 3 and 1, 3.
    assert allowed["methods"]["dense"]["MRR"]["value"] == (1 + 1 / 4) / 2
    assert allowed["methods"]["beams"]["MRR"]["value"] == 1 / 2 / 2
    assert filtered["methods"]["beams"]["MRR"]["value"] == (1 + 1 / 3) / 2
    assert filtered["methods"]["dense"]["MRR"]["value"] == (1 + 1 / 3) / 2
    assert {(row["a"], row["b"]) for row in allowed["paired"]} == {("beams", "dense")}
    assert allowed["groups"]["history 3-5"]["users"] == 1
    outcomes = pl.read_parquet(paths.outcomes)
    assert outcomes.filter(pl.col("method").str.contains("/")).rows() == [
        ("multimodal/beams", "u", "d", 2), ("multimodal/beams", "w", "e", None),
    ]  # fmt: skip
    assert outcomes.filter(method="multimodal")["rank"].to_list() == [1, 2, 4]


def test_the_filtered_protocol_may_have_no_users(paths):
    paths.sequences.unlink()
    items = sequences_file.catalogue(["a", "a", "a"], ITEMS, imageless="e")
    sequences_file.write(paths, items, sequences_file.sequences(dict.fromkeys(BOUGHT, "aba")))
    evaluate_rankings(RetrievalSettings(depth=4), paths, ())
    filtered = json.loads(paths.metrics.read_text())["protocols"]["seen_filtered"]
    assert filtered == {"users": 0, "left_out": 3, "methods": {}, "groups": {}, "paired": []}


def test_missing_baselines_are_refused(paths):
    files.remove(paths.baselines)
    with pytest.raises(MissingArtefactError, match="baselines"):
        evaluate_rankings(RetrievalSettings(), paths, ("multimodal",))


def test_the_blend_is_one_more_method_and_is_compared_with_the_best_other(paths):
    write_ranking(paths.blend.ranking, "daebcf")
    evaluate_rankings(RetrievalSettings(depth=4), paths, ("multimodal", "text_only"))
    protocol = json.loads(paths.metrics.read_text())["protocols"]["seen_allowed"]
    assert list(protocol["methods"]) == ["blend", "multimodal", "popularity", "repeat_last", "text_only"]
    against = {pair["b"] for pair in protocol["paired"] if pair["a"] == "blend" and pair["metric"] == "NDCG@10"}
    assert against == {"popularity", "multimodal"}, "the best baseline and the best method"
