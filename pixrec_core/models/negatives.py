"""What a target is told apart from in training: the items of its batch, and a sample of all others.

Metrics rank the whole catalogue, and a softmax over the items of a batch alone sees little of it:
mostly popular ones. The sample is encoded anew with the batch. A bank of the vectors that items had
some steps ago would be cheaper, and does harm while the towers still move fast: they learn to tell
fresh vectors from old ones.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from pixrec_core.losses import log_q_correction
from pixrec_core.models.item_inputs import Ids


class Negatives:
    """Draws the items that stand beside those of a batch.

    Args:
        counts: (N,) occurrences of each item of the catalogue in training. One without any is never
            drawn: what comes after the split is not to be known.
        sampled: items drawn for a step; all there are, where there are fewer.
        seed: of the draws; with the epoch it fixes them, in every process of a training alike.
        log_q_correction: whether logits of the batch's own items are corrected by `log_q_correction`.
    """

    def __init__(self, counts: Ids, sampled: int, seed: int, *, log_q_correction: bool = False) -> None:
        self._counts = counts
        self._sampled = sampled
        self._seed = seed
        self._log_q_correction = log_q_correction
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch."""
        self._generator = np.random.default_rng((self._seed, epoch, 1))  # without the 1: the stream of `Windows`

    def sample(self, own: Ids) -> tuple[Ids, NDArray[np.float64]]:
        """The items of a batch and the sample after them, and the offsets of their logits.

        Each drawn item stands for as many as it was drawn from, so its offset is the log of that
        number: the softmax is that over the whole catalogue, in expectation (Jean et al., ACL 2015).

        Args:
            own: (n,) distinct items of the batch.

        Returns:
            (I,) item numbers, those of `own` first, and (I,) offsets.
        """
        offsets = np.zeros(len(own))
        if self._log_q_correction:
            offsets = log_q_correction(torch.from_numpy(self._counts[own])).numpy()
        possible = self._counts > 0
        possible[own] = False
        others = np.flatnonzero(possible)
        drawn = self._generator.choice(others, min(self._sampled, len(others)), replace=False)
        log_expected_count = np.full(len(drawn), np.log(len(others) / len(drawn)) if len(drawn) else 0.0)
        return np.concatenate([own, drawn]), np.concatenate([offsets, log_expected_count])
