"""One protocol's part of metrics.json: means with intervals, groups, and paired differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pixrec_core.evaluation.bootstrap import Floats, interval, resampled_means
from pixrec_core.evaluation.metrics import METRICS, PerUser, per_user

COVERAGE_K: Final = 10
COVERAGE: Final = f"coverage@{COVERAGE_K}"
PAIRED_METRICS: Final = ("NDCG@10", "Recall@10")
FIRST_VARIANT: Final = "multimodal"  # what every other variant is compared with

Groups = dict[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class Outcome:
    """What one method did under one protocol.

    Attributes:
        ranks: (users,) of the target, infinity where it is not in the list.
        lists: what the lists are like, by name, (users,) each; the same names for every method.
        coverage: share of the catalogue among anybody's first ten, 0 to 1.
    """

    ranks: PerUser
    lists: Mapping[str, PerUser]
    coverage: float

    def values(self, kept: NDArray[np.bool_]) -> Floats:
        """All figures of the `kept` users, (users, figures), in the order of `figures`."""
        return np.column_stack([per_user(self.ranks), *self.lists.values()])[kept]

    @property
    def figures(self) -> list[str]:
        return [*METRICS, *self.lists]


def summarise(
    outcomes: dict[str, Outcome], kept: NDArray[np.bool_], groups: Groups, variants: Sequence[str]
) -> dict[str, Any]:
    """All figures of one protocol, as JSON values.

    Args:
        outcomes: of each method, over the same users.
        kept: (users,) whether the protocol counts the user.
        groups: name -> (users,) whether the user belongs to it; one without users is left out.
        variants: the methods that are no baselines.
    """
    users = int(kept.sum())
    summary: dict[str, Any] = {"users": users, "left_out": len(kept) - users, "methods": {}, "groups": {}, "paired": []}
    if not users:
        return summary
    figures = next(iter(outcomes.values())).figures
    values = np.stack([outcome.values(kept) for outcome in outcomes.values()], axis=1)
    resampled = resampled_means(values.reshape(users, -1)).reshape(-1, *values.shape[1:])
    for place, (method, outcome) in enumerate(outcomes.items()):
        summary["methods"][method] = {
            **_with_interval(figures, values[:, place], resampled[:, place]),
            COVERAGE: dict.fromkeys(("value", "low", "high"), outcome.coverage),
        }
    members = {name: belongs[kept] for name, belongs in groups.items() if belongs[kept].any()}
    summary["groups"] = {name: _group(figures, values[belongs], list(outcomes)) for name, belongs in members.items()}
    summary["paired"] = _paired(values.mean(axis=0), resampled, list(outcomes), variants)
    return summary


def _with_interval(figures: list[str], values: Floats, resampled: Floats) -> dict[str, dict[str, float]]:
    """Each figure's mean and interval, from (users, figures) values and (resamples, figures) means."""
    low, high = interval(resampled)
    ends = zip(figures, values.mean(axis=0), low, high, strict=True)
    return {figure: {"value": float(v), "low": float(lo), "high": float(hi)} for figure, v, lo, hi in ends}


def _group(figures: list[str], values: Floats, methods: list[str]) -> dict[str, Any]:
    """Means over the users of one group, from (users, methods, figures) values."""
    means = dict(zip(methods, values.mean(axis=0).tolist(), strict=True))
    return {
        "users": len(values),
        "methods": {method: dict(zip(figures, row, strict=True)) for method, row in means.items()},
    }


def _paired(means: Floats, resampled: Floats, methods: list[str], variants: Sequence[str]) -> list[dict[str, Any]]:
    """Differences a - b with intervals, from (methods, figures) means and (resamples, methods, figures) ones."""
    rows = []
    for metric in PAIRED_METRICS:
        column = list(METRICS).index(metric)
        value = dict(zip(methods, means[:, column].tolist(), strict=True))
        for a, b in _pairs(value, variants):
            difference = resampled[:, methods.index(a), column] - resampled[:, methods.index(b), column]
            low, high = interval(difference)
            rows.append(
                {"a": a, "b": b, "metric": metric, "difference": value[a] - value[b],
                 "low": float(low), "high": float(high)}
            )  # fmt: skip
    return rows


def _pairs(value: dict[str, float], variants: Sequence[str]) -> list[tuple[str, str]]:
    """The first variant with each other one, and every method with the baseline of the highest `value`."""
    ranked = [variant for variant in variants if variant in value]
    pairs = [(FIRST_VARIANT, other) for other in ranked if FIRST_VARIANT in ranked and other != FIRST_VARIANT]
    baselines = {method: v for method, v in value.items() if method not in variants}
    if baselines:
        best = max(baselines, key=baselines.__getitem__)
        pairs += [(method, best) for method in value if method != best]
    return pairs
