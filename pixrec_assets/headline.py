"""The main figure of each stage and the main metrics of an evaluation, for the terminal and for Dagster."""

from typing import Any, Final

from pixrec_core import files
from pixrec_core.paths import DatasetPaths
from pixrec_core.stages import Work

#: Items of the history may be recommended, since people buy again.
PROTOCOL: Final = "seen_allowed"
METRICS: Final = ("Recall@1", "Recall@10", "NDCG@10", "MRR")
DECIDING: Final = "NDCG@10"
COLUMNS: Final = ("method", *METRICS)

#: The main figure of each stage, from the statistics in its stamp.
FIGURES: Final = {
    "raw": "{reviews_bytes:,} + {metadata_bytes:,} bytes",
    "items": "{profile[rows]:,} items",
    "interactions": "{profile[rows]:,} interactions",
    "images": "{ok:,} of {urls:,} photos",
    "sequences": "{profile[users]:,} users, {measured_users:,} tested",
    "item_features": "{items:,} items",
    "baselines": "{users:,} users",
    "joint_checkpoint": "validation NDCG@10 {validation_ndcg@10:.4f}",
    "checkpoint": "validation NDCG@10 {validation_ndcg@10:.4f}",
    "item_vectors": "{items:,} vectors of {dimension}",
    "item_index": "{kind}, index recall {recall@10:.3f}",
    "ranking": "{users:,} users",
    "blend": "{summary}",
    "promoted": "{serves} serves",
    "evaluation": "{users:,} users",
    "refit": "{summary}",
}


def format_figure(stage: str, stats: dict[str, Any]) -> str:
    """Return a stage's main figure; empty if an earlier version of the stage did not record it."""
    try:
        return FIGURES.get(stage, "").format(**stats)
    except (KeyError, TypeError, ValueError):
        return ""


def headline(paths: DatasetPaths) -> dict[str, dict[str, float]]:
    """Return method -> metric -> value, the best NDCG@10 first.

    Raises:
        MissingArtefactError: the dataset has not been evaluated.
    """
    methods: dict[str, dict[str, Any]] = files.read_json(paths.metrics)["protocols"][PROTOCOL]["methods"]
    measured: dict[str, dict[str, float]] = {
        method: {metric: metrics[metric]["value"] for metric in METRICS if metric in metrics}
        for method, metrics in methods.items()
    }
    return dict(sorted(measured.items(), key=lambda each: (-each[1].get(DECIDING, 0.0), each[0])))


def served_method(work: Work) -> str | None:
    """Return the method that serves; None before a promotion."""
    manifest = work.paths.promoted.manifest  # a rollback changes it, and no stamp
    return files.read_json(manifest).get("method") if manifest.exists() else None


def rows_of(measured: dict[str, dict[str, float]], served: str | None = None) -> list[tuple[str, ...]]:
    """Return one row per method under `COLUMNS`, with the served one marked; "-" for a metric that was not measured."""
    return [
        (
            f"{method} (serves)" if method == served else method,
            *(f"{metrics[metric]:.4f}" if metric in metrics else "-" for metric in METRICS),
        )
        for method, metrics in measured.items()
    ]
