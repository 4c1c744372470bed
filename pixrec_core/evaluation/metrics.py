"""Metrics for one target per user, as pure functions of its rank.

Ranks count from 1; a target that is not in the list has rank infinity. A new metric is one function and its line in
`METRICS`, or an entry point of an installed distribution in the group `OUTSIDE`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import EntryPoint
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pixrec_core.plugins import load_outside, outside_plugins

PerUser = NDArray[np.float64]

OUTSIDE: Final = "pixrec_core.metrics"


def recall(ranks: PerUser, k: int) -> PerUser:
    """Return (users,) 1 if the target is among the first `k`, else 0. With one target this is the hit rate too."""
    return (ranks <= k).astype(np.float64)


def ndcg(ranks: PerUser, k: int) -> PerUser:
    """Return (users,) 1 / log2(1 + rank) if the target is among the first `k`, else 0."""
    return np.where(ranks <= k, 1 / np.log2(1 + ranks), 0.0)


def reciprocal_rank(ranks: PerUser) -> PerUser:
    """Return (users,) 1 / rank, or 0 if the target is not in the list."""
    return 1 / ranks


def _outside(entry: EntryPoint, ranks: PerUser) -> PerUser:
    """Call a metric from outside. It is imported late, since its module may import what imports this one."""
    values: PerUser = load_outside(entry)(ranks)
    return values


_OWN: Final[Mapping[str, Callable[[PerUser], PerUser]]] = {
    **{f"Recall@{k}": partial(recall, k=k) for k in (1, 5, 10, 20)},
    **{f"NDCG@{k}": partial(ndcg, k=k) for k in (5, 10)},
    "MRR": reciprocal_rank,
}

#: Name in metrics.json -> function of (users,) ranks to (users,) values.
METRICS: Final[Mapping[str, Callable[[PerUser], PerUser]]] = MappingProxyType(
    {**_OWN} | {name: partial(_outside, entry) for name, entry in outside_plugins(OUTSIDE).items() if name not in _OWN}
)


def per_user(ranks: PerUser) -> PerUser:
    """Return (users, metrics) all of `METRICS`, in their order."""
    return np.stack([metric(ranks) for metric in METRICS.values()], axis=1)
