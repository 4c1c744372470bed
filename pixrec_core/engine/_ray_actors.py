"""Ray actors that map shards and outlive a map: an actor takes seconds to start, and stages map again and again."""

import gc
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

IDLE_S: Final = 60.0  # how long actors are kept for the next map; other users of a cluster may wait for their room
RESTARTS: Final = 3  # of an actor whose process died; a shard that kills every process (memory) ends the map


class Worker:
    """An actor that holds the function of one map at a time."""

    def __init__(self) -> None:
        logging.basicConfig(level=logging.WARNING, format="%(message)s")  # Ray sends this output to the driver
        logging.getLogger("pixrec_core").setLevel(logging.INFO)
        self._held = ""
        self._function: Callable[[Any], Any] | None = None

    def run(self, function_refs: list[Any], shard: Any) -> Any:
        """Return the function of the shard. Ray does not resolve references in a list, so it is fetched only once."""
        import ray

        (reference,) = function_refs
        if self._held != reference.hex():  # the id only: a held reference would keep the function in Ray's store
            self.forget()  # first, so that two are never held
            self._function = ray.get(reference)
            self._held = reference.hex()
        assert self._function is not None, "fetched above"
        return self._function(shard)

    def forget(self) -> None:
        """Release the function and what it holds."""
        self._held, self._function = "", None
        gc.collect()


class KeptActors:
    """The actors of this process. Maps of several threads take turns, each with all actors."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._needs: dict[str, float] = {}
        self._actors: list[Any] = []
        self._timer = threading.Timer(IDLE_S, self.end)

    @contextmanager
    def pool(self, needs: dict[str, float], count: int) -> Iterator[Any]:
        """Yield a `ray.util.ActorPool` for one map.

        Afterwards the actors are kept for a while, except if the map failed. Actors that are still busy, because the
        map ended early, are ended, as are actors with a GPU: only the end of a process frees its GPU memory.

        Args:
            needs: what Ray reserves for each actor: num_cpus, num_gpus.
            count: number of actors.
        """
        import ray
        from ray.util import ActorPool

        with self._turn:
            self._timer.cancel()
            if needs != self._needs:
                self._end_all()
                self._needs = needs
            start = ray.remote(max_restarts=RESTARTS, **needs)(Worker).remote
            self._actors += [start() for _ in range(count - len(self._actors))]
            pool = ActorPool(self._actors[:count])
            try:
                yield pool
            except Exception:
                self._end_all()
                raise
            finally:
                self._keep_idle(pool, count)

    def end(self) -> None:
        """End all actors, to free their room."""
        with self._turn:
            self._end_all()

    def _keep_idle(self, pool: Any, count: int) -> None:
        idle = list(iter(pool.pop_idle, None)) if not self._needs["num_gpus"] else []
        for actor in self._actors[:count]:
            if actor in idle:
                actor.forget.remote()
            else:
                _end(actor)
        self._actors = [actor for actor in self._actors if actor in idle or actor in self._actors[count:]]
        self._timer = threading.Timer(IDLE_S, self.end)
        self._timer.daemon = True
        self._timer.start()

    def _end_all(self) -> None:
        for actor in self._actors:
            _end(actor)
        self._actors = []


def _end(actor: Any) -> None:
    import ray

    ray.kill(actor)
