"""The part of metrics.json for one protocol: means with intervals, groups, and paired differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pixrec_core.evaluation.bootstrap import Floats, interval, resampled_means
from pixrec_core.evaluation.metrics import METRICS, PerUser, per_user
from pixrec_core.paths import BLEND

COVERAGE_K: Final = 10
COVERAGE: Final = f"coverage@{COVERAGE_K}"
PAIRED_METRICS: Final = ("NDCG@10", "Recall@10")
FIRST_VARIANT: Final = "multimodal"  # every other variant is compared with it
TEXT_ONLY: Final = "text_only"  # every method is compared with it

Groups = dict[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class Outcome:
    """Results of one method under one protocol.

    Attributes:
        ranks: (users,) of the target, infinity if it is not in the list.
        lists: (users,) properties of the lists by name; the same names for every method.
        coverage: share of the catalogue (0 to 1) among the first ten items of any user.
    """

    ranks: PerUser
    lists: Mapping[str, PerUser]
    coverage: float

    def values(self, counted: NDArray[np.bool_]) -> Floats:
        """Return (counted users, columns) all values of the users that count, in the order of `columns`."""
        return np.column_stack([per_user(self.ranks), *self.lists.values()])[counted]

    @property
    def columns(self) -> list[str]:
        return [*METRICS, *self.lists]


def summarise(
    outcomes: dict[str, Outcome], counted: NDArray[np.bool_], groups: Groups, variants: Sequence[str]
) -> dict[str, Any]:
    """Return all values of one protocol as JSON values.

    Args:
        outcomes: outcomes of the same users by method.
        counted: (users,) whether the protocol counts the user.
        groups: (users,) membership by name; a group without users is left out.
        variants: the methods that are not baselines.
    """
    users = int(counted.sum())
    summary: dict[str, Any] = {
        "users": users,
        "left_out": len(counted) - users,
        "methods": {},
        "groups": {},
        "paired": [],
    }
    if not users:
        return summary
    columns = next(iter(outcomes.values())).columns
    values = np.stack([outcome.values(counted) for outcome in outcomes.values()], axis=1)
    resampled = resampled_means(values.reshape(users, -1)).reshape(-1, *values.shape[1:])
    for index, (method, outcome) in enumerate(outcomes.items()):
        summary["methods"][method] = {
            **_with_interval(columns, values[:, index], resampled[:, index]),
            COVERAGE: dict.fromkeys(("value", "low", "high"), outcome.coverage),
        }
    members = {name: member[counted] for name, member in groups.items() if member[counted].any()}
    summary["groups"] = {name: _group(columns, values[member], list(outcomes)) for name, member in members.items()}
    summary["paired"] = _paired(values.mean(axis=0), resampled, list(outcomes), variants)
    return summary


def _with_interval(columns: list[str], values: Floats, resampled: Floats) -> dict[str, dict[str, float]]:
    """Return the mean and interval of each column, from (users, columns) values and (resamples, columns) means."""
    low, high = interval(resampled)
    rows = zip(columns, values.mean(axis=0), low, high, strict=True)
    return {name: {"value": float(v), "low": float(lo), "high": float(hi)} for name, v, lo, hi in rows}


def _group(columns: list[str], values: Floats, methods: list[str]) -> dict[str, Any]:
    """Return the means over the users of one group, from (users, methods, columns) values."""
    means = dict(zip(methods, values.mean(axis=0).tolist(), strict=True))
    return {
        "users": len(values),
        "methods": {method: dict(zip(columns, row, strict=True)) for method, row in means.items()},
    }


def _paired(means: Floats, resampled: Floats, methods: list[str], variants: Sequence[str]) -> list[dict[str, Any]]:
    """Return differences a - b with intervals, from (methods, columns) and (resamples, methods, columns) means."""
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
    """Return the pairs to compare: the first variant with each other one, and all methods with a few references.

    The references are the best baseline, the best of all methods but the blend, the blend, and text alone. The highest
    `value` is the best; `variants` are no baselines.
    """
    present = [variant for variant in variants if variant in value]
    pairs = [(FIRST_VARIANT, other) for other in present if FIRST_VARIANT in present and other != FIRST_VARIANT]
    baselines = {method: v for method, v in value.items() if method not in variants and method != BLEND}
    if baselines:
        best = max(baselines, key=baselines.__getitem__)
        pairs += [(method, best) for method in value if method != best]
    single = {method: v for method, v in value.items() if method != BLEND}
    references = [max(single, key=single.__getitem__)] if single else []
    references += [method for method in (BLEND, TEXT_ONLY) if method in value]
    pairs += [(method, reference) for reference in references for method in value if method != reference]
    return list({frozenset(pair): pair for pair in reversed(pairs)}.values())[::-1]
