"""One training batch on several processes that each hold the whole model: who works on what of it.

Every process is given the whole batch as item numbers and deals it by the same rule, so nothing need be agreed on.
What is learnt equals one process with that batch, up to the order of floating-point sums: item vectors are gathered
with their gradients, so that every pair meets every item of the batch, and means are over the counts of all.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

from pixrec_core.models.item_inputs import Ids
from pixrec_core.models.windows import TrainingWindow

T = TypeVar("T")


class RankInfo(NamedTuple):
    """The part of each batch that one process works on.

    Attributes:
        rank: number of the process, from 0.
        world_size: how many there are.
    """

    rank: int
    world_size: int

    @classmethod
    def current(cls) -> "RankInfo":
        """Everything, outside a process group."""
        return cls(distributed.get_rank(), distributed.get_world_size()) if _in_group() else WHOLE

    def windows(self, windows: Sequence[TrainingWindow]) -> list[TrainingWindow]:
        """Every `world_size`-th window. Where there is none, one without a target: whoever missed a step would stop all."""
        return list(windows[self.rank :: self.world_size]) or [TrainingWindow(windows[0].items[:1])]

    def holders(self, rows: Ids, drawn: int) -> NDArray[np.int64]:
        """Which process encodes each item: one that reads it in a history anyway, so that its photo is encoded once.

        Args:
            rows: (n,) a window that holds each item of the batch itself.
            drawn: items beside those; dealt evenly.

        Returns:
            (n + drawn,) ranks.
        """
        return np.concatenate([rows, np.arange(drawn)]) % self.world_size


WHOLE: Final = RankInfo(0, 1)


def all_gather_with_grad(own: Tensor, counts: Sequence[int]) -> Tensor:
    """Rows of all processes in rank order, through which gradients flow back to whoever made each row.

    Args:
        own: (at least `counts[rank]`, D) rows of this process; what is over is left out.
        counts: rows of each process.

    Returns:
        (sum of `counts`, D).
    """
    if len(counts) == 1:
        return own
    joined: Tensor = _Gather.apply(own[: counts[distributed.get_rank()]], counts)  # type: ignore[no-untyped-call]
    return joined


class _Gather(torch.autograd.Function):
    """torch's own differentiable gathers are deprecated or private, and want as many rows of each process."""

    @staticmethod
    def forward(context: Any, own: Tensor, counts: Sequence[int]) -> Tensor:
        context.counts = counts
        padded = own.new_zeros(max(counts), own.shape[1])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        parts: tuple[Tensor, ...] = torch.split(all_reduce_sum(gradients[0].clone()), list(context.counts))
        return parts[distributed.get_rank()], None


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum of all processes' values, in place; as they are outside a process group."""
    if _in_group():
        distributed.all_reduce(values)
    return values


def broadcast_from_rank0(values: Tensor | None) -> Tensor | None:
    """The first process's values in place of one's own."""
    if values is not None and _in_group():
        distributed.broadcast(values, src=0)
    return values


def broadcast_object(value: T) -> T:
    """An object that can be pickled, as the first process has it. Others wait for it."""
    told = [value]
    if _in_group():
        distributed.broadcast_object_list(told, src=0)
    return told[0]


def _in_group() -> bool:
    return distributed.is_available() and distributed.is_initialized()
