"""What a training draws from: the windows of one dataset, or of several with one dataset to a batch.

A batch's items are each other's negatives. Those of another shop are told apart by their wording alone, so
they would teach little in the place of hard ones; and nobody chooses between shops when a ranking is made.
Windows of every dataset come once an epoch: datasets are drawn in proportion to their data.
"""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Dataset, Sampler

from pixrec_core.models.collate import Batch, Collator
from pixrec_core.models.windows import Window, Windows
from pixrec_core.training.sampler import LengthGroupedSampler

Example = tuple[int, Window]


class Mixture(Dataset[Example]):
    """Windows of all datasets one after the other, each with the number of its dataset.

    Args:
        parts: windows and collator of each dataset; both count that dataset's items alone.
    """

    def __init__(self, parts: Sequence[tuple[Windows, Collator]]) -> None:
        self.windows = [windows for windows, _ in parts]
        self._collators = [collator for _, collator in parts]

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch: the windows are cut anew, and other negatives drawn."""
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
        """This process's share of a training batch of examples that are all of one dataset."""
        numbers = {number for number, _ in examples}
        assert len(numbers) == 1, f"a batch of datasets {sorted(numbers)}; it holds one alone"
        return self._collators[numbers.pop()]([window for _, window in examples])


class OneDatasetBatches(Sampler[list[int]]):
    """Batches of a mixture, each of one dataset and of windows of like length, in an order drawn anew each epoch.

    Args:
        windows: of each dataset.
        batch: windows of a step; a dataset's last batch of an epoch may be smaller.
        seed: of the order; with the epoch it fixes it.
    """

    def __init__(self, windows: Sequence[Windows], batch: int, seed: int) -> None:
        self.batch_size = batch  # read by accelerate
        self._samplers = [LengthGroupedSampler(each, batch, seed) for each in windows]
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch."""
        self._epoch = epoch
        for sampler in self._samplers:
            sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        batches, offset = list[list[int]](), 0
        for sampler in self._samplers:
            numbers = [offset + number for number in sampler]
            batches += [numbers[n : n + self.batch_size] for n in range(0, len(numbers), self.batch_size)]
            offset += len(numbers)
        generator = torch.Generator().manual_seed(hash((self._seed, self._epoch)))
        yield from (batches[n] for n in torch.randperm(len(batches), generator=generator))

    def __len__(self) -> int:
        return sum(-(-len(sampler) // self.batch_size) for sampler in self._samplers)
