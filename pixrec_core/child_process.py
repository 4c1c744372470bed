"""Processes that must not outlive the one that started them."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from threading import Thread
from typing import TypeVar

from pixrec_core.errors import LostProcessError

A = TypeVar("A")
R = TypeVar("R")


def end_with_parent(number: signal.Signals) -> None:
    """Send this process a signal when its parent ends, even if the parent was killed.

    Call it in a process of `multiprocessing`.
    """
    parent = multiprocessing.parent_process()
    assert parent, "called in a child process"

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), number)

    Thread(target=wait, daemon=True).start()


def map_in_processes(function: Callable[[A], R], arguments: Sequence[A], processes: int) -> Iterator[R]:
    """Yield the results of a function as they are ready. Each process uses an equal part of the cores.

    Raises:
        LostProcessError: a process was killed.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")  # of the user, or of a process of `pixrec run --workers`
    threads = max(1, (int(given) if given.isdecimal() else os.cpu_count() or 1) // processes)
    spawn = multiprocessing.get_context("spawn")  # a fork would copy the threads of DuckDB, Polars and torch in part
    pool = ProcessPoolExecutor(processes, spawn, _start_process, (threads,))
    try:
        for future in as_completed([pool.submit(function, argument) for argument in arguments]):
            yield future.result()
    except BaseException as error:
        for process in list((pool._processes or {}).values()):  # `kill_workers` of Python 3.14
            process.kill()
        if isinstance(error, BrokenProcessPool):
            raise LostProcessError(
                "a process was killed; the usual cause is too little memory: end other programs, then run this again"
            ) from error
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_process(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all processes; the parent handles it
    end_with_parent(signal.SIGKILL)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read by torch, OpenBLAS and LightGBM when they are imported
