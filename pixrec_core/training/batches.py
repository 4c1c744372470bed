"""Training batches: windows of one dataset each, grouped by length.

A joint training draws from several datasets in proportion to their size, but a batch has one dataset. Items of a batch
are each other's negatives, and an item of another shop would be an easy negative, recognised by its wording.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from pixrec_core.models.collate import Batch, Collator
from pixrec_core.models.items_collate import ItemsCollator
from pixrec_core.models.windows import TrainingWindow, TrainingWindows

Example = tuple[int, TrainingWindow]

MIN_STEPS: Final = 32  # of an epoch
MAX_STEPS: Final = 500  # of an epoch, so that large data are validated in between
POOLED_BATCHES: Final = 50  # as in transformers


class JointWindows(Dataset[Example]):
    """The windows of all datasets in a row, each with the number of its dataset.

    Args:
        parts: windows and collator of each dataset; item numbers in both are those of the dataset.
        by_targets: the size of a batch counts targets, not windows.
    """

    def __init__(
        self, parts: Sequence[tuple[TrainingWindows, Collator | ItemsCollator]], *, by_targets: bool = False
    ) -> None:
        self.windows = [windows for windows, _ in parts]
        self._collators = [collator for _, collator in parts]
        self._by_targets = by_targets

    def batch_sampler(self, batch_size: int, seed: int) -> "OneDatasetBatchSampler":
        """Return the sampler of batches of `batch_size` windows or targets."""
        sampler = TargetsBatchSampler if self._by_targets else OneDatasetBatchSampler
        return sampler(self.windows, batch_size, seed)

    def set_epoch(self, epoch: int) -> None:
        """Cut other windows and draw other negatives; called before each epoch."""
        for windows in self.windows:
            windows.set_epoch(epoch)
        for collator in self._collators:
            collator.set_epoch(epoch)

    def __len__(self) -> int:
        return sum(map(len, self.windows))

    def __getitem__(self, index: int) -> Example:
        for number, windows in enumerate(self.windows):
            if index < len(windows):
                return number, windows[index]
            index -= len(windows)
        raise IndexError(index)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Return this process's part of a batch; all examples must be of one dataset."""
        numbers = {number for number, _ in examples}
        assert len(numbers) == 1, f"a batch mixes datasets {sorted(numbers)}"
        return self._collators[numbers.pop()]([window for _, window in examples])


class OneDatasetBatchSampler(Sampler[list[int]]):
    """Batches of `JointWindows`: each of one dataset and of windows of similar length, shuffled in every epoch.

    Without transformers' grouping by length, 40 % of a batch is padding.

    Args:
        windows: windows of each dataset.
        batch_size: windows per step; the last batch of a dataset in an epoch may be smaller.
        seed: fixes the order of each epoch, so that a resumed training sees the same batches.
    """

    def __init__(self, windows: Sequence[TrainingWindows], batch_size: int, seed: int) -> None:
        self.batch_size = batch_size  # read by accelerate
        self._windows = windows
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        batches, offset = list[list[int]](), 0
        for windows in self._windows:
            order = get_length_grouped_indices(windows.lengths, self.batch_size, generator=self._generator())
            indices = [offset + index for index in order]
            batches += [indices[n : n + self.batch_size] for n in range(0, len(indices), self.batch_size)]
            offset += len(indices)
        yield from (batches[n] for n in torch.randperm(len(batches), generator=self._generator()))

    def __len__(self) -> int:
        return sum(-(-len(windows) // self.batch_size) for windows in self._windows)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(hash((self._seed, self._epoch)))


class TargetsBatchSampler(OneDatasetBatchSampler):
    """Batches of about `batch_size` targets in windows of any length; smaller ones of small data.

    A step costs the same for long and short histories, and every epoch has at least `MIN_STEPS` steps if the data have
    enough windows. Of data with more than `MAX_STEPS` batches, each epoch has that many, drawn at random. The number of
    batches is the same in every epoch.
    """

    def __iter__(self) -> Iterator[list[int]]:
        batches, offset = list[list[int]](), 0
        for windows in self._windows:
            count = self._count(windows)
            pool = max(1, len(windows) * POOLED_BATCHES // count)  # windows that are sorted by length together
            order = get_length_grouped_indices(windows.lengths, pool, 1, generator=self._generator())
            targets = np.array(windows.lengths)[order] - 1
            batch = (np.cumsum(targets) - targets) * count // windows.targets
            parts = np.split(np.array(order) + offset, np.flatnonzero(np.diff(batch)) + 1)
            batches += [part.tolist() for part in parts]
            offset += len(windows)
        yield from (batches[n] for n in torch.randperm(len(batches), generator=self._generator())[:MAX_STEPS])

    def __len__(self) -> int:
        return min(MAX_STEPS, sum(map(self._count, self._windows)))

    def _count(self, windows: TrainingWindows) -> int:
        """Return the number of batches. A batch has more targets than any window, so that none is empty."""
        most = max(1, windows.targets // windows.max_targets)
        return min(max(-(-windows.targets // self.batch_size), MIN_STEPS), most)
