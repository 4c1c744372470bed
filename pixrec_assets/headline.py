"""The numbers that stand for an evaluation, for the terminal and for Dagster alike."""

from typing import Any, Final

from pixrec_core import files
from pixrec_core.paths import DatasetPaths

#: Items that the user has already may be recommended again, as people buy again.
PROTOCOL: Final = "seen_allowed"
METRICS: Final = ("Recall@1", "Recall@10", "NDCG@10", "MRR")
DECIDING: Final = "NDCG@10"
COLUMNS: Final = ("method", *METRICS)


def headline(paths: DatasetPaths) -> dict[str, dict[str, float]]:
    """Method -> metric -> value, the best NDCG@10 last.

    Raises:
        MissingArtefactError: the dataset has not been evaluated.
    """
    methods: dict[str, dict[str, Any]] = files.read_json(paths.metrics)["protocols"][PROTOCOL]["methods"]
    measured: dict[str, dict[str, float]] = {
        method: {metric: metrics[metric]["value"] for metric in METRICS if metric in metrics}
        for method, metrics in methods.items()
    }
    return dict(sorted(measured.items(), key=lambda each: (each[1].get(DECIDING, 0.0), each[0])))


def rows_of(measured: dict[str, dict[str, float]]) -> list[tuple[str, ...]]:
    """One row a method under `COLUMNS`; "-" where a metric was not measured."""
    return [
        (method, *(f"{metrics[metric]:.4f}" if metric in metrics else "-" for metric in METRICS))
        for method, metrics in measured.items()
    ]
