"""The interfaces of engines."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

S = TypeVar("S")
R = TypeVar("R")

#: A report of the first process of a group to the process that started it, such as the metrics of an epoch.
Report = dict[str, float]


class Engine(Protocol):
    """Maps a function over shards."""

    @property
    def workers(self) -> int:
        """The largest number of shards that are processed at the same time."""
        ...

    def map_shards(self, function: Callable[[S], R], shards: Sequence[S]) -> Iterator[R]:
        """Yield `function(shard)` for every shard, in the order of the shards.

        The function is sent to each worker once, with all its data (a model, a memory-mapped array). If a worker dies,
        its shard is processed again. So `function` must return the same for the same shard, and may find its own
        half-written files. An exception of the function is raised here and ends the other workers.

        Args:
            function: can be pickled, as can the shards and the results.
            shards: of similar size: results are yielded in order, so each one waits for those before it.

        Raises:
            EngineError: no worker could be started, or the workers of one shard died repeatedly.
        """
        ...


class Launcher(Engine, Protocol):
    """An engine that also starts process groups, for training."""

    def run_process_group(
        self, function: Callable[..., None], world_size: int, on_report: Callable[[Report], None]
    ) -> None:
        """Call a function in processes that form a torch process group, and wait until all have ended.

        All processes end if one of them fails or if this process is interrupted or killed.

        Args:
            function: can be pickled; called with one argument, `on_report`.
            world_size: number of processes.
            on_report: called in this process with every report of the first process of the group. Log lines of that
                process are logged here too. An exception of `on_report` ends all processes.

        Raises:
            LostProcessError: a process was killed or ended itself.
            PixRecError: raised by the function in one of the processes.
        """
        ...
