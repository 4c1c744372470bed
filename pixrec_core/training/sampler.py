"""Batches of windows of like length: without them some 40 % of a batch is padding."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from pixrec_core.models.windows import Windows


class LengthGroupedSampler(Sampler[int]):
    """transformers' grouping by length, for windows that are cut anew each epoch.

    Args:
        windows: to sample from.
        batch: windows of a step.
        seed: of the shuffling; with the epoch it fixes the order, so that a resumed run goes on as it would have.
    """

    def __init__(self, windows: Windows, batch: int, seed: int) -> None:
        self._windows = windows
        self._batch = batch
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(hash((self._seed, self._epoch)))
        yield from get_length_grouped_indices(self._windows.lengths, self._batch, generator=generator)

    def __len__(self) -> int:
        return len(self._windows)
