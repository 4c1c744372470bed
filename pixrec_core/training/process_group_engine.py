"""An engine of the processes of a training."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from accelerate.utils import gather_object

from pixrec_core.models.process_group import RankInfo

S = TypeVar("S")
R = TypeVar("R")


class ProcessGroupEngine:
    """An `Engine` whose workers are the processes of the group: all map the same shards, and all get all results."""

    def __init__(self) -> None:
        self._rank, self.workers = RankInfo.current()

    def map_shards(self, function: Callable[[S], R], shards: Sequence[S]) -> Iterator[R]:
        """See `Engine`. A process that dies ends the training, so no shard is repeated."""
        for start in range(0, len(shards), self.workers):
            index = start + self._rank
            yield from gather_object([function(shard) for shard in shards[index : index + 1]])
