"""Shards mapped over the processes that train together, which all wait for each other anyway."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from torch import distributed

from pixrec_core.models.process_group import RankInfo

S = TypeVar("S")
R = TypeVar("R")


class GroupEngine:
    """An `Engine` whose workers are the processes of a group; all must map the same shards, and all get all results.

    Args:
        share: which of the processes this is.
    """

    def __init__(self, rank_info: RankInfo) -> None:
        self._rank_info = rank_info

    @property
    def workers(self) -> int:
        """See `Engine`."""
        return self._rank_info.world_size

    def map_shards(self, function: Callable[[S], R], shards: Sequence[S]) -> Iterator[R]:
        """See `Engine`. A process that dies ends the training, so no shard is worked on again."""
        rank, ranks = self._rank_info
        for start in range(0, len(shards), ranks):
            turn = shards[start : start + ranks]
            results: list[Any] = [None] * ranks
            own = function(turn[rank]) if rank < len(turn) else None
            if ranks == 1:
                results = [own]
            else:
                distributed.all_gather_object(results, own)
            yield from results[: len(turn)]
