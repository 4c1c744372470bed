"""Tasks in threads, few at a time in all and fewer from one host."""

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from queue import SimpleQueue
from typing import Final, Protocol, TypeVar


class _HasHost(Protocol):
    @property
    def host(self) -> str: ...


T = TypeVar("T", bound=_HasHost)
R = TypeVar("R")

#: Tasks taken from the source ahead of time: among so many, some other host's are found when one host is busy.
LOOKAHEAD: Final = 512


def map_by_host(
    work: Callable[[T], R],
    tasks: Iterable[T],
    threads: int,
    per_host: int,
    stop: threading.Event,
) -> Iterator[R]:
    """Yield `work(task)` of every task, in the order in which they finish.

    However many tasks there are, at most `LOOKAHEAD` + `threads` of them are held in memory. What
    `work` raises is raised here, after the tasks in flight have ended; `stop` is set then, or when
    the caller ends early, so that `work` can cut its waiting short.
    """
    source = iter(tasks)
    waiting: dict[str, deque[T]] = {}
    running: dict[Future[R], str] = {}
    ended: SimpleQueue[Future[R]] = SimpleQueue()
    with ThreadPoolExecutor(threads, thread_name_prefix="pixrec-photo") as pool:
        try:
            while True:
                for task in islice(source, LOOKAHEAD - sum(map(len, waiting.values()))):
                    waiting.setdefault(task.host, deque()).append(task)
                for name, task in _startable(waiting, Counter(running.values()), threads, per_host):
                    future = pool.submit(work, task)
                    running[future] = name
                    future.add_done_callback(ended.put)
                if not running:
                    return
                future = ended.get()
                del running[future]
                yield future.result()
        except BaseException:
            stop.set()
            raise


def _startable(
    waiting: dict[str, deque[T]], busy: Counter[str], threads: int, per_host: int
) -> Iterator[tuple[str, T]]:
    """Take from `waiting` the tasks for which there is a thread and whose host is not too `busy`."""
    free = threads - busy.total()
    for name in list(waiting):
        for _ in range(min(free, per_host - busy[name], len(waiting[name]))):
            free -= 1
            yield name, waiting[name].popleft()
        if not waiting[name]:
            del waiting[name]
