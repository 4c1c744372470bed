"""Percentile bootstrap over users.

One set of resamples serves all methods and metrics: the difference of two columns is then a paired
bootstrap, which is what tells two methods apart that succeed and fail on the same users.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

RESAMPLES: Final = 1_000
COVERED: Final = 0.95  # share of the resamples between `low` and `high`
AT_A_TIME: Final = 16  # resamples in memory; 128 bytes a user
SEED: Final = 0

Floats = NDArray[np.float64]


def resampled_means(values: Floats) -> Floats:
    """Means of `values` (users, columns) over users drawn with replacement; (resamples, columns).

    The draw depends on the number of users alone.
    """
    users = len(values)
    random = np.random.default_rng(SEED)
    means = np.empty((RESAMPLES, values.shape[1]))
    for start in range(0, RESAMPLES, AT_A_TIME):
        batch = means[start : start + AT_A_TIME]
        drawn = [np.bincount(random.integers(users, size=users), minlength=users) for _ in batch]
        # Not `@`: BLAS spends most of its time waiting for its own threads on so narrow a product.
        batch[:] = np.einsum("ru,uc->rc", np.stack(drawn).astype(np.float64), values) / users
    return means


def interval(means: Floats) -> tuple[Floats, Floats]:
    """Low and high end of what `COVERED` of the resamples lie in, of each column."""
    low, high = np.quantile(means, [(1 - COVERED) / 2, (1 + COVERED) / 2], axis=0)
    return low, high
