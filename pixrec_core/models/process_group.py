"""Data-parallel training: which part of a batch each rank encodes, and the collectives that join the parts.

Every rank receives the whole batch as item numbers and splits it by the same rule, so ranks need not communicate to
agree on the split. The result equals one process with the whole batch, up to the order of floating-point sums: item
vectors are gathered with their gradients, so every pair is compared with every item of the batch, and losses are
divided by the counts of the whole batch.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed
from torch.distributed._functional_collectives import all_gather_single_autograd
from torch.nn import functional

from pixrec_core.models.item_inputs import Ids
from pixrec_core.models.windows import TrainingWindow


class RankInfo(NamedTuple):
    """Position of a process in its process group."""

    rank: int
    world_size: int

    @classmethod
    def current(cls) -> "RankInfo":
        """Of this process; `SINGLE_PROCESS` outside a process group."""
        return cls(distributed.get_rank(), distributed.get_world_size()) if _in_group() else SINGLE_PROCESS

    def local_windows(self, windows: Sequence[TrainingWindow]) -> list[TrainingWindow]:
        """Windows of a batch that this rank reads: every `world_size`-th.

        A rank without a window gets one without a target: a rank that skipped a step would block all others.
        """
        return list(windows[self.rank :: self.world_size]) or [TrainingWindow(windows[0].items[:1])]

    def assign_items(self, window_rows: Ids, num_sampled: int) -> NDArray[np.int64]:
        """Rank that encodes each item; an item of a history goes to a rank that needs its photo for the history.

        Args:
            window_rows: (n,) index of one window that holds each item of the batch.
            num_sampled: number of sampled negatives, which are split evenly.

        Returns:
            (n + num_sampled,) ranks.
        """
        return np.concatenate([window_rows, np.arange(num_sampled)]) % self.world_size


SINGLE_PROCESS: Final = RankInfo(0, 1)


def all_gather_with_grad(rows: Tensor, rows_per_rank: Sequence[int]) -> Tensor:
    """Rows of all ranks in rank order; gradients flow back to the rank that computed each row.

    Args:
        rows: (at least `rows_per_rank[rank]`, D) rows of this rank; surplus rows are left out.
        rows_per_rank: (world_size,) number of rows of each rank, which may differ.

    Returns:
        (sum of `rows_per_rank`, D).
    """
    if len(rows_per_rank) == 1:
        return rows
    group = distributed.group.WORLD
    assert group is not None, "more than one rank needs a process group"
    count, most = rows_per_rank[distributed.get_rank()], max(rows_per_rank)
    padded = functional.pad(rows[:count], (0, 0, 0, most - count))  # the collective needs equal shapes
    gathered = all_gather_single_autograd(padded, 0, group)
    return torch.cat([part[:n] for part, n in zip(gathered.split(most), rows_per_rank, strict=True)])


def broadcast_from_rank0(values: Tensor | None) -> Tensor | None:
    """The values of rank 0, in place; unchanged outside a process group."""
    if values is not None and _in_group():
        distributed.broadcast(values, src=0)
    return values


def _in_group() -> bool:
    return distributed.is_available() and distributed.is_initialized()
