"""Evaluations as tables: the rows of one, and the comparison of several runs.

Runs differ by their seed: then the standard deviation over runs says how much a training varies. Two groups of runs
differ by a setting: then the paired difference says what it changes. Intervals are of users, deviations of runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from pixrec_core.errors import ArtefactError, MissingArtefactError, QueryError
from pixrec_core.evaluation.bootstrap import Floats, interval, resampled_means
from pixrec_core.evaluation.metrics import METRICS
from pixrec_core.schemas import ITEM, METHOD, RANK, USER

#: One row per protocol, method and metric: metrics.csv.
ROW_SCHEMA: Final = pl.Schema(
    {"protocol": pl.String, METHOD: pl.String, "metric": pl.String}
    | dict.fromkeys(("value", "low", "high"), pl.Float64)
    | {"users": pl.Int64}
)
#: One row per method and metric.
COMPARISON_SCHEMA: Final = pl.Schema(
    {METHOD: pl.String, "metric": pl.String, "runs": pl.Int64, "users": pl.Int64}
    | dict.fromkeys(("mean", "deviation"), pl.Float64)
    | {"minus": pl.String}
    | dict.fromkeys(("difference", "low", "high"), pl.Float64)
)


def metric_rows(metrics: Mapping[str, Any]) -> pl.DataFrame:
    """Return `ROW_SCHEMA` of the content of metrics.json: every method under both protocols, with 95 % intervals."""
    rows = [
        {"protocol": protocol, METHOD: method, "metric": metric, **estimate, "users": values["users"]}
        for protocol, values in metrics["protocols"].items()
        for method, of_method in values["methods"].items()
        for metric, estimate in of_method.items()
    ]
    return pl.DataFrame(rows, ROW_SCHEMA)


@dataclass(frozen=True)
class Run:
    """One evaluation: `outcomes` has the rank of each user's target by each method, seen items allowed."""

    folder: Path
    outcomes: pl.DataFrame

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """Read `data/<dataset>`, or its folder `evaluation`.

        Raises:
            MissingArtefactError: there is no outcomes.parquet.
            ArtefactError: it is damaged.
        """
        path = folder / "outcomes.parquet"
        if not path.exists():
            root = folder.absolute().parent if folder.name == "evaluation" else folder.absolute()
            path = root / "evaluation" / "outcomes.parquet"
            if not path.exists():
                raise MissingArtefactError(
                    f"{path} does not exist. Name the folder of a dataset, such as data/books, whose evaluation is "
                    f"built: `pixrec run {root.name} --up-to evaluation`"
                )
        try:
            return cls(folder, pl.read_parquet(path, glob=False))
        except pl.exceptions.PolarsError as error:
            raise ArtefactError(f"{path} is damaged ({error}); build the stage `evaluation` with --force") from error

    def methods_of(self, users: pl.DataFrame) -> pl.DataFrame:
        """Return the methods, column `METHOD`, that ranked for all of `users` (columns `USER` and `ITEM`).

        A generative ranker may rank for a sample of them only, and would have a miss for every other user.
        """
        counts = self.outcomes.join(users, [USER, ITEM], "semi").group_by(METHOD).len()
        return counts.filter(pl.col("len") == users.height).select(METHOD).sort(METHOD)

    def values(self, users: pl.DataFrame, method: str, metric: str) -> Floats:
        """Return (users,) values of a metric, in the order of `users` (columns `USER` and `ITEM`)."""
        ranks = users.join(self.outcomes.filter(pl.col(METHOD) == method), [USER, ITEM], "left", maintain_order="left")
        return METRICS[metric](ranks[RANK].cast(pl.Float64).fill_null(np.inf).to_numpy())


def compare_runs(
    runs: Sequence[Run], metrics: Sequence[str], *, versus: Sequence[Run] = (), reference: str | None = None
) -> pl.DataFrame:
    """Compare the methods of several runs.

    Args:
        runs: evaluations of one setting, such as one per seed.
        metrics: names of `METRICS`.
        versus: evaluations of another setting; the difference is of the same method in `runs` minus in `versus`.
        reference: without `versus`, the method to subtract; by default the one that is best by the metric of the row,
            or the second best for that method itself.

    Returns:
        `COMPARISON_SCHEMA`, the best first metric first, of the methods that ranked for all users. Values are means
        over the users that all runs have with the same target; `deviation` is the standard deviation over runs (n - 1),
        null for one run and for a method that is the same in all, such as a baseline that seeds share. Differences are
        of means over runs, with the 95 % interval of the paired bootstrap over users.

    Raises:
        QueryError: a metric or the reference is unknown.
        ArtefactError: the runs have no user with the same target in common.
    """
    if unknown := [metric for metric in metrics if metric not in METRICS]:
        raise QueryError(f"unknown metric {unknown[0]!r}; known: {', '.join(METRICS)}")
    everyone = [*runs, *versus]
    users = _common([run.outcomes.select(USER, ITEM).unique() for run in everyone], [USER, ITEM]).sort(USER)
    if users.is_empty():
        raise ArtefactError(
            f"{', '.join(str(run.folder) for run in everyone)} have no test user with the same target in common; "
            "compare evaluations of the same data and split"
        )
    methods = _common([run.methods_of(users) for run in everyone], [METHOD])[METHOD].to_list()
    if reference and reference not in methods:
        raise QueryError(f"unknown method {reference!r}; methods of all runs: {', '.join(sorted(methods))}")
    reciprocal_ranks, rows = _values(runs, users, methods, "MRR"), []
    differs = (reciprocal_ranks != reciprocal_ranks[0]).any(axis=(0, 1))
    for metric in metrics:
        values = _values(runs, users, methods, metric)
        ours, means = values.mean(axis=0), values.mean(axis=1)
        theirs = _values(versus, users, methods, metric).mean(axis=0) if versus else ours
        best_first = [reference] if reference else [methods[n] for n in np.argsort(-ours.mean(axis=0), kind="stable")]
        for index, method in enumerate(methods):
            minus = method if versus else next((other for other in best_first if other != method), None)
            row = {METHOD: method, "metric": metric, "runs": len(runs), "users": users.height}
            row |= {
                "mean": means[:, index].mean(),
                "deviation": means[:, index].std(ddof=1) if differs[index] else None,
            }
            if minus:
                difference = ours[:, index] - theirs[:, methods.index(minus)]
                (low,), (high,) = interval(resampled_means(difference[:, np.newaxis]))
                row |= {"minus": minus, "difference": difference.mean(), "low": low, "high": high}
            rows.append(row)
    table = pl.DataFrame(rows, COMPARISON_SCHEMA)
    first = table.filter(pl.col("metric") == metrics[0]).sort("mean", METHOD, descending=[True, False])
    return first.select(METHOD).join(table, METHOD, maintain_order="left_right")


def _common(tables: Sequence[pl.DataFrame], on: list[str]) -> pl.DataFrame:
    """The rows that all tables have, in the order of the first."""
    rows = tables[0]
    for table in tables[1:]:
        rows = rows.join(table, on, "semi")
    return rows


def _values(runs: Sequence[Run], users: pl.DataFrame, methods: Sequence[str], metric: str) -> Floats:
    """Return (runs, users, methods) values."""
    return np.stack([np.column_stack([run.values(users, method, metric) for method in methods]) for run in runs])
