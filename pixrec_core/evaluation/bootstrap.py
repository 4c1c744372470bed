"""Percentile bootstrap over users.

All methods and metrics share one set of resamples, so the difference of two columns is a paired bootstrap.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

RESAMPLES: Final = 1_000
CONFIDENCE: Final = 0.95
RESAMPLES_PER_BLOCK: Final = 16  # 128 bytes per user
SEED: Final = 0

Floats = NDArray[np.float64]


def resampled_means(values: Floats) -> Floats:
    """Return the means (resamples, columns) of `values` (users, columns) over users drawn with replacement.

    The draw depends only on the number of users.
    """
    users = len(values)
    random = np.random.default_rng(SEED)
    means = np.empty((RESAMPLES, values.shape[1]))
    for start in range(0, RESAMPLES, RESAMPLES_PER_BLOCK):
        block = means[start : start + RESAMPLES_PER_BLOCK]
        drawn = [np.bincount(random.integers(users, size=users), minlength=users) for _ in block]
        # Not `@`: on so narrow a product BLAS mostly waits for its threads.
        block[:] = np.einsum("ru,uc->rc", np.stack(drawn).astype(np.float64), values) / users
    return means


def interval(means: Floats) -> tuple[Floats, Floats]:
    """Return the bounds (columns,) of the `CONFIDENCE` interval of each column of (resamples, columns) means."""
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return low, high
