"""Negatives of a training step: the items of the batch, and a sample of the training catalogue.

Metrics rank the whole catalogue, while a softmax over the items of one batch sees few of them, mostly popular ones.
Sampled items are encoded in the same step. A memory bank of vectors from earlier steps would be cheaper, but does
harm while the towers change fast: they learn to separate fresh vectors from old ones.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from pixrec_core.losses import log_q_correction
from pixrec_core.models.item_inputs import Ids


class Negatives:
    """Samples items of the catalogue and computes the logit offset of every key.

    Args:
        counts: (N,) training interactions of each item of the catalogue. Items without any are never sampled:
            training must not know of items that appear after the split.
        num_sampled: items to sample per step; all of them where the catalogue has fewer.
        seed: seed of the samples. Samples depend on seed and epoch only, so all ranks draw the same ones.
        log_q_correction: apply `log_q_correction` to the logits of in-batch negatives.
    """

    def __init__(self, counts: Ids, num_sampled: int, seed: int, *, log_q_correction: bool = False) -> None:
        self._counts = counts
        self._num_sampled = num_sampled
        self._seed = seed
        self._log_q_correction = log_q_correction
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Restart the random stream; call it before each epoch."""
        self._generator = np.random.default_rng((self._seed, epoch, 1))  # 1: another stream than TrainingWindows'

    def sample(self, batch_items: Ids) -> tuple[Ids, NDArray[np.float64]]:
        """Keys of a step, batch items first, and the offsets of their logits.

        A sampled item represents (number of candidates / number of samples) items, so its offset is the log of
        that ratio: in expectation the softmax is over the whole catalogue (Jean et al., ACL 2015).

        Args:
            batch_items: (n,) distinct items of the batch.

        Returns:
            (C,) item numbers, `batch_items` first, and (C,) offsets.
        """
        batch_offsets = np.zeros(len(batch_items))
        if self._log_q_correction:
            batch_offsets = log_q_correction(torch.from_numpy(self._counts[batch_items])).numpy()
        is_candidate = self._counts > 0
        is_candidate[batch_items] = False
        candidates = np.flatnonzero(is_candidate)
        sampled = self._generator.choice(candidates, min(self._num_sampled, len(candidates)), replace=False)
        log_expected_count = np.log(len(candidates) / len(sampled)) if len(sampled) else 0.0
        offsets = np.concatenate([batch_offsets, np.full(len(sampled), log_expected_count)])
        return np.concatenate([batch_items, sampled]), offsets
