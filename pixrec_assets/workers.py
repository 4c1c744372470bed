"""Where tasks run: in this process, or in a few worker processes that each take one after the other."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Final, NoReturn, Protocol

from pixrec_assets.running import Fault, Task
from pixrec_assets.terminal import STOPPING, show_progress
from pixrec_core import pipeline
from pixrec_core.stages import Work

#: Seconds that a worker has to end its step after a signal; a training saves nothing, so it needs little.
GRACE_S: Final = 30.0

_SPAWN: Final = multiprocessing.get_context("spawn")  # a fork would copy the threads of DuckDB and Polars half


class Pool(Protocol):
    """What runs tasks."""

    @property
    def free(self) -> int:
        """Tasks that could be started now."""

    def start(self, task: Task) -> None:
        """Take a task; only where one is `free`."""

    def wait(self) -> tuple[Task, Fault | None]:
        """The next task that is done, and why it failed if it did."""

    def stop(self) -> None:
        """End what is under way."""


class InProcessPool:
    """One task at a time in this process."""

    def __init__(self) -> None:
        self._task: Task | None = None

    @property
    def free(self) -> int:
        return 0 if self._task else 1

    def start(self, task: Task) -> None:
        self._task = task

    def wait(self) -> tuple[Task, Fault | None]:
        from pixrec_assets import execution  # brings Dagster, which takes seconds

        assert self._task, "waited for nothing"
        task, self._task = self._task, None
        return task, execution.materialise(*task)

    def stop(self) -> None:
        """Nothing is left: the signal that asks for it has ended the task."""


class Workers:
    """A few processes, started as they are needed, each with one task at a time."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, tuple[_Worker, Task]] = {}

    @property
    def free(self) -> int:
        return self.count - len(self._busy)

    def start(self, task: Task) -> None:
        self._idle = [worker for worker in self._idle if worker.process.is_alive()]  # memory may run out over idle ones
        worker = self._idle.pop() if self._idle else _Worker(self.count, task[1])
        worker.connection.send((task[0].name, task[1]))
        self._busy[worker.connection] = worker, task

    def wait(self) -> tuple[Task, Fault | None]:
        (connection, *_) = wait(list(self._busy))
        assert isinstance(connection, Connection)
        worker, task = self._busy[connection]
        try:
            fault: Fault | None = connection.recv()
            self._idle.append(worker)
        except (EOFError, ConnectionResetError):
            fault = worker.bury(task[1])
        del self._busy[connection]
        return task, fault

    def stop(self) -> None:
        """Interrupt every worker's step; one that does not heed that is killed."""
        busy = [worker for worker, _ in self._busy.values()]
        workers = [*self._idle, *busy]
        for worker in busy:
            worker.interrupt()
        for worker in workers:
            worker.connection.close()
        self._idle, self._busy = [], {}
        try:
            for worker in workers:
                worker.process.join(GRACE_S)
        finally:  # another Ctrl-C while they are waited for ends the waiting
            for worker in workers:
                worker.process.kill()
                worker.process.join()


class _Worker:
    """A process that answers each task with its fault, or None."""

    def __init__(self, count: int, work: Work) -> None:
        from pixrec_assets import execution
        from pixrec_assets.home import dagster_home

        # Opened here first: Dagster's tables are made by whoever comes first, and two at once collide.
        self._instance = execution.open_instance(dagster_home(work.settings))
        self.connection, far = _SPAWN.Pipe()
        self.process: BaseProcess = _SPAWN.Process(target=_serve, args=(far, count), name="pixrec worker")
        with _signals_held():
            self.process.start()
        far.close()

    def interrupt(self) -> None:
        if self.process.is_alive() and self.process.pid:
            os.kill(self.process.pid, signal.SIGINT)

    def bury(self, work: Work) -> Fault:
        """What to say of a worker that died over its task; its run is marked as failed."""
        from pixrec_assets import execution

        self.connection.close()
        self.process.join()
        execution.fail_orphaned_runs(self._instance)
        code = self.process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return Fault(f"the worker process of {work.dataset} {how}; SIGKILL mostly means that memory ran out", True)


@contextmanager
def _signals_held() -> Iterator[None]:
    """A child started within begins with the signals blocked, until it has left the terminal's process group."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, count: int) -> None:
    """Run tasks until the other side closes the connection.

    A group of its own keeps the terminal's Ctrl-C away: the parent passes it on, once.
    """
    os.setpgrp()
    for number in STOPPING:
        signal.signal(number, signal.default_int_handler)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    Thread(target=_end_with_parent, daemon=True).start()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        _answer(connection)
    except (EOFError, BrokenPipeError):
        _leave(0)
    except KeyboardInterrupt:
        _leave(128 + signal.SIGINT)


def _leave(code: int) -> NoReturn:
    """End without a traceback, should a signal come while the interpreter clears up."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def _answer(connection: Connection) -> None:
    from pixrec_assets import execution

    stages = {stage.name: stage for stage in pipeline.STAGES}
    while True:
        name, work = connection.recv()
        stage = stages[name]
        show_progress(stage.partition_key(work))
        connection.send(execution.materialise(stage, work))


def _end_with_parent() -> None:
    """A parent that was killed can end nobody; training for it would hold the GPU and the checkpoint's lock."""
    parent = multiprocessing.parent_process()
    assert parent, "called in a process that has one"
    parent.join()
    os.kill(os.getpid(), signal.SIGINT)
