"""The engine of one machine: shards in this process, process groups by torch's launcher."""

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Final

from pixrec_core.engine._contract import R, Report, S
from pixrec_core.settings import EngineSettings


class LocalEngine:
    """Processes one shard after another: libraries use all cores within a shard."""

    workers = 1

    def map_shards(self, function: Callable[[S], R], shards: Sequence[S]) -> Iterator[R]:
        """See `Engine`."""
        return map(function, shards)

    def run_process_group(
        self, function: Callable[..., None], world_size: int, on_report: Callable[[Report], None]
    ) -> None:
        """See `Launcher`.

        Raises:
            SettingsError: this machine has GPUs, but fewer than processes.
            ChildFailedError: a process failed in any other way; the message has its traceback.
        """
        launcher = import_module("pixrec_core.engine._local_processes")  # needs torch; other callers do not
        launcher.run_process_group(function, world_size, on_report)


LOCAL: Final = LocalEngine()


def make(_: EngineSettings) -> LocalEngine:
    """Return the local engine."""
    return LOCAL
