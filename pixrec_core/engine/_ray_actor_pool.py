"""Worker processes of Ray that outlive a map: to start one takes seconds, and stages map again and again."""

import gc
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

IDLE_S: Final = 60.0  # that a worker is kept for the next map; others of a cluster may wait for its room
ANSWER_S: Final = 10.0  # for a kept worker to answer before its next map; one of a machine that is lost never does


class Worker:
    """One process, that holds the function of one map at a time."""

    def __init__(self) -> None:
        logging.basicConfig(level=logging.WARNING, format="%(message)s")  # what it logs, Ray brings to its driver
        logging.getLogger("pixrec_core").setLevel(logging.INFO)
        self._held = ""
        self._function: Callable[[Any], Any] | None = None

    def run(self, function_refs: list[Any], shard: Any) -> Any:
        """The function of the shard; it is fetched once: what stands in a list, Ray does not bring with each call."""
        import ray

        (reference,) = function_refs
        if self._held != reference.hex():  # the name alone: who holds a reference keeps what it names in Ray's memory
            self.forget()  # first, so that no two are held
            self._function = ray.get(reference)
            self._held = reference.hex()
        assert self._function is not None, "it was fetched"
        return self._function(shard)

    def forget(self) -> None:
        """Let go of the function and what it holds."""
        self._held, self._function = "", None
        gc.collect()


class ActorPool:
    """The workers of this process, all with the same room set aside; those without work are kept for a while.

    Maps of several threads share them: one that finds all of them at work waits for the other's end.
    """

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._needs: dict[str, float] = {}
        self._idle: list[Any] = []
        self._busy = 0
        self._end_of_idling = threading.Timer(IDLE_S, self.end_idle)

    @contextmanager
    def pool(self, needs: dict[str, float], wanted: int, room: int) -> Iterator[Any]:
        """An `ActorPool` of workers for one map.

        Those that are still at work when it ends, because the map did before its time, are ended: the next map is not
        to wait for them. So are workers with a GPU, whose memory a process gives back only by ending.

        Args:
            needs: what Ray sets aside for each: num_cpus, num_gpus.
            wanted: workers, at most.
            room: workers that there is room for, at least one.
        """
        from ray.util import ActorPool

        workers = self._take(needs, wanted, room)
        pool = ActorPool(workers)
        try:
            yield pool
        finally:
            free = list(iter(pool.pop_idle, None))
            self._give_back(workers, [] if needs["num_gpus"] else free)

    def _take(self, needs: dict[str, float], wanted: int, room: int) -> list[Any]:
        with self._change:
            self._change.wait_for(lambda: not wanted or self._busy < room)
            self._end_of_idling.cancel()
            if needs != self._needs:
                self.end_idle()
                self._needs = needs
            count = min(wanted, room - self._busy)
            kept = _answering(self._idle[:count])
            del self._idle[:count]
            workers = kept + [_start(needs) for _ in range(count - len(kept))]
            self._busy += count  # only now: what a start that failed had counted, no map would ever give back
        return workers

    def _give_back(self, workers: list[Any], free: list[Any]) -> None:
        _end([each for each in workers if each not in free])
        for each in free:
            each.forget.remote()
        with self._change:
            self._busy -= len(workers)
            self._idle += free
            self._end_of_idling.cancel()
            self._end_of_idling = threading.Timer(IDLE_S, self.end_idle)
            self._end_of_idling.daemon = True
            self._end_of_idling.start()
            self._change.notify_all()

    def end_idle(self) -> None:
        """End those without work."""
        with self._change:
            _end(self._idle)
            self._idle = []


def _start(needs: dict[str, float]) -> Any:
    import ray

    return ray.remote(max_restarts=-1, **needs)(Worker).remote()


def _answering(workers: list[Any]) -> list[Any]:
    """Those that live; the others are ended, so that Ray does not start them again."""
    import ray

    answers = {each.forget.remote(): each for each in workers}
    came, _ = ray.wait(list(answers), num_returns=len(answers), timeout=ANSWER_S) if answers else ([], [])
    alive = [answers[answer] for answer in came if _is_good(answer)]
    _end([each for each in workers if each not in alive])
    return alive


def _is_good(answer: Any) -> bool:
    import ray

    try:
        ray.get(answer)
    except ray.exceptions.RayError:
        return False
    return True


def _end(workers: list[Any]) -> None:
    import ray

    for each in workers:
        ray.kill(each)
