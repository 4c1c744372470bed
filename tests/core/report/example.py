"""Small inputs of a report: the artefacts of the stages before it."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Literal

import numpy as np
import polars as pl
from PIL import Image
from safetensors.numpy import save_file

from pixrec_core import files
from pixrec_core.data.sequences import read_items
from pixrec_core.paths import DatasetPaths
from pixrec_core.report.answer import Answer, Query
from pixrec_core.report.inputs import titles_of
from pixrec_core.schemas import CATALOGUE_SCHEMA, INTERACTION_SCHEMA, RANKING_SCHEMA
from pixrec_core.serving import Recommendation
from pixrec_core.serving.promotion import Promotion
from tests.core import sequences_file

ITEMS = [f"i{n:02}" for n in range(30)]
HOSTILE = {
    "i00": "<script>alert('hi')</script>",
    "i01": "\"quoted\" 'and' & <b onclick=x>bold</b>",
    "i02": "قميص رجالي \u202eabc",
    "i03": "x" * 5000,
    "i04": "",
    "i05": '"><img src=x onerror=alert(1)>',
    "i06": "two\nlines\x07and a bell",
    "i07": "{{ 7 * 7 }}{% raw %}",
    "i08": "</style></svg><!-- ]]>",
}
METRICS = ("Recall@1", "Recall@10", "NDCG@10", "MRR", "coverage@10")
RECALL = {"popularity": 0.05, "co_occurrence": 0.2, "text_only": 0.1, "multimodal": 0.14}


def estimates(share: float) -> dict:
    return {name: {"value": share, "low": share - 0.01, "high": share + 0.01} for name in METRICS}


def protocol(methods: Sequence[str]) -> dict:
    pair = {"a": "multimodal", "b": "text_only", "metric": "Recall@10", "difference": 0.04, "low": 0.01, "high": 0.07}
    return {
        "users": 6,
        "left_out": 0,
        "methods": {m: estimates(RECALL[m]) for m in methods},
        "groups": {"cold": {"users": 2, "methods": {m: {"Recall@10": RECALL[m]} for m in methods}}},
        "paired": [pair] if {"multimodal", "text_only"} <= set(methods) else [],
    }


def inputs_worth() -> dict:
    """What inputs are worth to two groups; a category's name is hostile."""
    whole = {"Recall@10": {"value": 0.3, "low": 0.2, "high": 0.4}}
    lost = {
        "ease": {"Recall@10": {"value": 0.01, "low": -0.01, "high": 0.03}},
        "photos": {"Recall@10": {"value": -0.02, "low": -0.04, "high": 0.0}},
        "co_occurrence": {"Recall@10": {"value": 0.05, "low": 0.02, "high": 0.08}},
    }
    groups = {name: {"users": 40, "whole": whole, "lost": lost} for name in ("everyone", "cold", "category: <b>|x")}
    return {"users": 40, "protocols": {"seen_allowed": groups}}


def write_metrics(paths: DatasetPaths, methods: Sequence[str] = tuple(RECALL)) -> None:
    protocols = {name: protocol(methods) for name in ("seen_allowed", "seen_filtered")}
    shares = {"share_tied": 0.5, "share_cold": 0.25, "share_repeat_targets": 0.125}
    counts = {"users": 6, "items": len(ITEMS), "depth": 12}
    files.write_json(paths.metrics, {**counts, "protocols": protocols, "inputs": inputs_worth(), **shares})


def write_sequences(paths: DatasetPaths, bought: Mapping[str, Sequence[str]]) -> None:
    empty = dict.fromkeys(CATALOGUE_SCHEMA)
    known = {"has_image": True, "train_count": 0}
    rows = [empty | known | {"item": item, "title": HOSTILE.get(item, f"title of {item}")} for item in ITEMS]
    sequences_file.write(paths, pl.DataFrame(rows, schema=CATALOGUE_SCHEMA), sequences_file.sequences(bought))


def write_ranking(paths: DatasetPaths, variant: str, ranked: Mapping[str, Sequence[str]]) -> None:
    rows = [(user, n, item, 1 / n) for user, items in ranked.items() for n, item in enumerate(items, start=1)]
    path = paths.variant(variant).ranking
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows, schema=RANKING_SCHEMA, orient="row").write_parquet(path)


def write_vectors(paths: DatasetPaths, variant: str, vectors: Mapping[str, Sequence[float]]) -> None:
    folder = paths.variant(variant).item_vectors
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame({"item": list(vectors)}).write_parquet(folder / "items.parquet")
    save_file({"vectors": np.array(list(vectors.values()), np.float32)}, folder / "vectors.safetensors")


def write_photos(paths: DatasetPaths, items: Sequence[str]) -> None:
    for n, item in enumerate(items):
        path = paths.image(item)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (200, 300), (8 * n, 120, 255 - 8 * n)).save(path)


def write_training(paths: DatasetPaths, variant: str, epochs: int = 3) -> None:
    terms = ("loss", "generation", "item_item", "user_item", "ndcg@10")
    rows = [{"epoch": e, **dict.fromkeys(terms, 1 / e)} for e in range(1, epochs + 1)]
    curve = {"epochs": rows, "best_epoch": 2, "examples": 1234, "parameters": 2345678, "seconds": 1.5}
    files.write_json(paths.variant(variant).checkpoint / "training.json", curve)


def write_counts(paths: DatasetPaths, source: str) -> None:
    files.write_json(paths.stamp("raw"), {"stats": {"source": source, "reviews_sha256": "ab12"}})
    files.write_json(paths.stamp("items"), {"stats": {"items": 1234, "share_bad": 0.125, "reasons": {"no title": 2}}})
    index = {"kind": "hnsw", "sha256": "ab12", "recall@10": 0.9625, "recall_queries": "6 validation users"}
    files.write_json(paths.variant("multimodal").stamp("item_index"), {"stats": index})
    check = {"name": "users", "passed": True, "observed": 6.0, "expected": "at least 2", "severity": "error"}
    late = {"name": "share_tied", "passed": False, "observed": None, "expected": "0 to 0.5", "severity": "warn"}
    files.write_json(paths.contract("sequences"), [check, late])
    days = pl.DataFrame({"timestamp": [86_400_000, 0]}, schema={"timestamp": pl.Int64})
    empty = [pl.lit(None, dtype).alias(name) for name, dtype in INTERACTION_SCHEMA.items() if name != "timestamp"]
    days.with_columns(empty).write_parquet(paths.interactions)


#: The targets of u0 to u5 are i10 to i15. Multimodal finds those of u0, u1 and u2 (at ranks 1, 2, 3), text only those
#: of u2 and u3 (both at 1); that of u4 has rank 12 in both, that of u5 is in no list.
BOUGHT = {f"u{n}": [*ITEMS[:9], f"i{10 + n}"] for n in range(6)}
OTHERS = ITEMS[16:27]
RANKED = {
    "multimodal": {
        "u0": ["i10", *OTHERS],
        "u1": ["i20", "i11", "i00"],
        "u2": ["i20", "i21", "i12"],
        "u3": OTHERS,
        "u4": [*OTHERS, "i14"],
        "u5": OTHERS,
    },
    "text_only": {
        "u0": OTHERS,
        "u1": OTHERS,
        "u2": ["i12", *OTHERS],
        "u3": ["i13", *OTHERS],
        "u4": [*OTHERS, "i14"],
        "u5": OTHERS,
    },
}


def promotion(method: str = "multimodal") -> Promotion:
    return Promotion(
        number=1,
        dataset="shop",
        method=method,
        methods={method: 0.1},
        selection_users=30,
        towers=(),
        promoted_at="2026-01-02T03:04:05Z",
        measured=1,
        trained_at="2026-01-02T03:04:05Z",
        checkpoint_sha256={},
        score=0.1,
        comparison=None,
        photo_size=256,
        max_pixels=10**6,
        files=dict.fromkeys(
            (
                "sequences.duckdb",
                "images.parquet",
                "blend/blend.json" if method == "blend" else f"baselines/{method}/model.json",
            ),
            "",
        ),
    )


def write_promotion(paths: DatasetPaths, method: str) -> None:
    files.write_json(paths.promoted.manifest, promotion(method).model_dump(mode="json"))


def answer(paths: DatasetPaths, kind: Literal["items", "text"] = "items", value: str = "") -> Answer:
    """Nine hostile items, recommended after a history of nine other items or for a text."""
    recommender = SimpleNamespace(promotion=promotion())
    found = [Recommendation(item, 1 - n / 10) for n, item in enumerate([*HOSTILE, "i19"][1:])]
    history = ["i00", *ITEMS[12:20]] if kind == "items" else []
    return Answer(recommender, "multimodal", Query(kind, value), history, found, titles_of(read_items(paths)))


def write_all(paths: DatasetPaths, source: str = "amazon_2023") -> DatasetPaths:
    write_metrics(paths)
    write_sequences(paths, BOUGHT)
    write_photos(paths, ITEMS[:20])
    write_counts(paths, source)
    angles = np.linspace(0, 1, len(ITEMS))
    for variant, ranked in RANKED.items():
        write_ranking(paths, variant, ranked)
        write_training(paths, variant)
        write_vectors(paths, variant, {i: (np.cos(a), np.sin(a)) for i, a in zip(ITEMS, angles, strict=True)})
    return paths
