"""What every engine owes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

S = TypeVar("S")
R = TypeVar("R")


class Engine(Protocol):
    """Maps a function over shards."""

    @property
    def workers(self) -> int:
        """Shards that are worked on at a time, at most."""
        ...

    def map_shards(self, function: Callable[[S], R], shards: Sequence[S]) -> Iterator[R]:
        """Yield `function(shard)` of every shard, in the order of the shards.

        What `function` holds (a model, a memory-mapped array) goes to each worker once. A shard whose worker died is
        worked on again, so `function` must give the same for the same shard, and may find files of its own that it
        left half done. What it raises is raised here, as it was raised there, and ends the other workers.

        Args:
            function: what can be pickled, as must be the shards and what it makes of them.
            shards: as even as they can be: a worker waits for the shards before its own.

        Raises:
            EngineError: no worker could be had, or one shard lost its worker again and again.
        """
        ...
