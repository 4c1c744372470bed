"""Metrics of one target a user, as pure functions of its rank.

A rank counts from 1; a target that is not in the list has rank infinity. Adding a metric is adding
one function and its line in `METRICS`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

PerUser = NDArray[np.float64]


def recall(ranks: PerUser, k: int) -> PerUser:
    """1 where the target is among the first `k`, else 0; (users,). With one target it is the hit rate too."""
    return (ranks <= k).astype(np.float64)


def ndcg(ranks: PerUser, k: int) -> PerUser:
    """1 / log2(1 + rank) where the target is among the first `k`, else 0; (users,). The ideal list scores 1."""
    return np.where(ranks <= k, 1 / np.log2(1 + ranks), 0.0)


def reciprocal_rank(ranks: PerUser) -> PerUser:
    """1 / rank, and 0 where the target is not in the list; (users,)."""
    return 1 / ranks


#: Name in metrics.json -> function of (users,) ranks to (users,) values.
METRICS: Final[Mapping[str, Callable[[PerUser], PerUser]]] = MappingProxyType(
    {
        **{f"Recall@{k}": partial(recall, k=k) for k in (1, 5, 10, 20)},
        **{f"NDCG@{k}": partial(ndcg, k=k) for k in (5, 10)},
        "MRR": reciprocal_rank,
    }
)


def per_user(ranks: PerUser) -> PerUser:
    """All of `METRICS`, in their order; (users, metrics)."""
    return np.stack([metric(ranks) for metric in METRICS.values()], axis=1)
