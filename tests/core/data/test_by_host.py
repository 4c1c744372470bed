import threading
import time
from collections import Counter
from dataclasses import dataclass

import pytest

from pixrec_core.data.downloading import LOOKAHEAD, map_by_host


@dataclass(frozen=True)
class Visit:
    host: str
    number: int


class Busy:
    """A task that counts how many run at the same time."""

    def __init__(self, seconds=0.002):
        self.lock, self.seconds = threading.Lock(), seconds
        self.now, self.most = Counter(), Counter()

    def __call__(self, visit):
        self._count(visit.host, +1)
        time.sleep(self.seconds)
        self._count(visit.host, -1)
        return visit

    def _count(self, host, step):
        with self.lock:
            for name in (host, "all"):
                self.now[name] += step
                self.most[name] = max(self.most[name], self.now[name])


def test_every_task_runs_once_within_both_limits():
    visits = [Visit("abc"[n % 3], n) for n in range(90)]
    busy = Busy()
    done = list(map_by_host(busy, visits, 5, 2, threading.Event()))
    assert sorted(done, key=lambda v: v.number) == visits
    assert busy.most == {"all": 5, "a": 2, "b": 2, "c": 2}


def test_a_busy_host_leaves_threads_for_others():
    visits = [*(Visit("slow", n) for n in range(200)), Visit("other", 200)]
    numbers = [v.number for v in map_by_host(Busy(), visits, 4, 2, threading.Event())]
    assert numbers.index(200) < 10


def test_tasks_are_read_lazily():
    taken = 0

    def source():
        nonlocal taken
        for number in range(100_000):
            taken += 1
            yield Visit("h", number)

    results = map_by_host(Busy(0), source(), 4, 4, threading.Event())
    for _ in range(10):
        next(results)
    assert taken <= LOOKAHEAD + 4 + 10
    results.close()


def test_without_tasks_nothing_runs():
    assert list(map_by_host(Busy(), [], 4, 4, threading.Event())) == []


def test_an_error_stops_the_other_tasks_and_is_raised():
    stop = threading.Event()

    def work(visit):
        if visit.number == 3:
            raise OSError("disk full")
        return stop.wait() if visit.number == 2 else None

    with pytest.raises(OSError, match="disk full"):
        list(map_by_host(work, [Visit("h", n) for n in range(1000)], 4, 4, stop))
    assert stop.is_set()


def test_closing_the_iterator_stops_the_other_tasks():
    stop = threading.Event()
    results = map_by_host(lambda visit: stop.wait(0.01), [Visit("h", n) for n in range(50)], 2, 2, stop)
    next(results)
    results.close()
    assert stop.is_set()
