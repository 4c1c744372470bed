"""Where stages run: in this process, or in a few worker processes with one stage at a time each.

`concurrent.futures` breaks the whole pool when a worker is killed and does not report its exit code, and a Dagster run
has one partition; here one killed worker is one failed stage, and a signal reaches every running stage.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Final, NoReturn

from pixrec_assets.terminal import STOPPING, show_progress
from pixrec_core import pipeline
from pixrec_core.child_process import end_with_parent
from pixrec_core.stages import StageInputs, StageRun, Work

#: Seconds that a worker has to stop its stage after a signal.
GRACE_S: Final = 30.0

_SPAWN: Final = multiprocessing.get_context("spawn")  # a fork would copy the threads of DuckDB and Polars in part


@dataclass(frozen=True)
class Failure:
    """Why a stage run failed.

    Attributes:
        text: a message for the user, or a traceback.
        expected: whether `text` is a message.
        run_id: the Dagster run.
    """

    text: str
    expected: bool
    run_id: str | None = None


class InProcessPool:
    """Runs one stage at a time in this process. See `WorkerPool` for the methods."""

    def __init__(self) -> None:
        self._started: tuple[StageRun, StageInputs | None] | None = None

    @property
    def free(self) -> int:
        return 0 if self._started else 1

    def start(self, run: StageRun, inputs: StageInputs | None) -> None:
        self._started = run, inputs

    def wait(self) -> tuple[StageRun, Failure | None]:
        from pixrec_assets import execution  # imports Dagster, which takes seconds

        assert self._started, "wait() needs a started stage run"
        (run, inputs), self._started = self._started, None
        return run, execution.materialise(run.stage, run.work, inputs)

    def stop(self) -> None:
        """Nothing runs any more: the signal has stopped the stage."""


class WorkerPool:
    """Runs stages in a few processes, started as they are needed."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, tuple[_Worker, StageRun]] = {}

    @property
    def free(self) -> int:
        """How many stages could be started now."""
        return self.count - len(self._busy)

    def start(self, run: StageRun, inputs: StageInputs | None) -> None:
        """Start a stage run; call it only while the pool is free."""
        self._idle = [worker for worker in self._idle if worker.process.is_alive()]  # an idle one may be killed too
        worker = self._idle.pop() if self._idle else _Worker(self.count, run.work)
        worker.connection.send((run.stage.name, run.work, inputs))
        self._busy[worker.connection] = worker, run

    def wait(self) -> tuple[StageRun, Failure | None]:
        """Wait for the next stage run that ends; return it, and why it failed if it did."""
        (connection, *_) = wait(list(self._busy))
        assert isinstance(connection, Connection)
        worker, run = self._busy[connection]
        try:
            failure: Failure | None = connection.recv()
            self._idle.append(worker)
        except (EOFError, ConnectionResetError):
            failure = worker.clean_up(run)
        del self._busy[connection]
        return run, failure

    def stop(self) -> None:
        """Interrupt the stage of every worker; kill a worker that does not stop in time."""
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
        finally:  # a second Ctrl-C ends the waiting
            for worker in workers:
                worker.process.kill()
                worker.process.join()


Pool = InProcessPool | WorkerPool


class _Worker:
    """A process that answers each stage run with its failure, or None."""

    def __init__(self, count: int, work: Work) -> None:
        from pixrec_assets import execution
        from pixrec_assets.home import dagster_home

        # Open the instance here first: two processes that create Dagster's tables at once collide.
        self._instance = execution.open_instance(dagster_home(work.settings))
        self.connection, far = _SPAWN.Pipe()
        self.process: BaseProcess = _SPAWN.Process(target=_serve, args=(far, count), name="pixrec worker")
        with _signals_blocked():
            self.process.start()
        far.close()

    def interrupt(self) -> None:
        if self.process.is_alive() and self.process.pid:
            os.kill(self.process.pid, signal.SIGINT)

    def clean_up(self, run: StageRun) -> Failure:
        """Describe the end of a worker that died during a stage, and mark its Dagster run as failed."""
        from pixrec_assets import execution

        self.connection.close()
        self.process.join()
        execution.fail_orphaned_runs(self._instance)
        code = self.process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        hint = "; the usual cause of SIGKILL is too little memory" if code == -signal.SIGKILL else ""
        return Failure(f"The worker process of {run} {how}{hint}.", expected=True)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """A child started within the block has the signals blocked until it leaves the terminal's process group."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _serve(connection: Connection, count: int) -> None:
    """Run stages until the other side closes the connection.

    The worker has a process group of its own, so the terminal's Ctrl-C reaches it once, through the parent.
    """
    os.setpgrp()
    for number in STOPPING:
        signal.signal(number, signal.default_int_handler)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    end_with_parent(signal.SIGINT)  # a training that continues would hold the GPU and the checkpoint's lock
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        _run_received(connection)
    except (EOFError, BrokenPipeError):
        _exit_quietly(0)
    except KeyboardInterrupt:
        _exit_quietly(128 + signal.SIGINT)


def _exit_quietly(code: int) -> NoReturn:
    """Exit without a traceback even if a signal arrives while the interpreter shuts down."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def _run_received(connection: Connection) -> None:
    from pixrec_assets import execution

    while True:
        name, work, inputs = connection.recv()
        stage = pipeline.stage_named(name)
        show_progress(stage.partition_key(work))
        connection.send(execution.materialise(stage, work, inputs))
