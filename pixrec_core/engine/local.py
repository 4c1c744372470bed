"""All shards in this process, one after another."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from pixrec_core.engine._contract import R, S
from pixrec_core.settings import EngineSettings


class LocalEngine:
    """Maps here: libraries use all cores within a shard."""

    workers = 1

    def map_shards(self, function: Callable[[S], R], shards: Sequence[S]) -> Iterator[R]:
        """See `Engine`."""
        return map(function, shards)


LOCAL: Final = LocalEngine()


def make(_: EngineSettings) -> LocalEngine:
    """The one there is."""
    return LOCAL
