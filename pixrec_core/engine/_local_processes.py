"""Process groups on this machine, started by torch's elastic launcher without its agent.

`elastic_launch` does not fit: it has no hook for reports while the processes run, and its rendezvous listens on all
interfaces. So this module calls the layer below it, `elastic.multiprocessing.start_processes`. The rendezvous is a
file, and the processes connect through the loopback interface.
"""

import atexit
import gc
import logging
import os
import signal
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from torch import distributed
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, RunProcsResult, start_processes
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from pixrec_core import files
from pixrec_core.child_process import end_with_parent
from pixrec_core.engine._contract import Report
from pixrec_core.engine._process_group import (
    POLL_S,
    ReportQueue,
    call_and_report,
    forward_reports,
    join_process_group,
    log_level,
    lost_process_error,
)
from pixrec_core.errors import SettingsError

#: Modules that ranks need and that take seconds to import; the server process of ranks imports them once.
PRELOADED: Final = ("transformers.trainer", "polars")
#: They print the traceback of a failed process, which the error that is raised contains.
LAUNCHER_LOGGERS: Final = ("torch.distributed.elastic.multiprocessing.api", "torch.multiprocessing.spawn")


def run_process_group(function: Callable[..., None], world_size: int, on_report: Callable[[Report], None]) -> None:
    """See `LocalEngine.run_process_group`."""
    if torch.cuda.is_available() and torch.cuda.device_count() < world_size:
        raise SettingsError(
            f"training.processes is {world_size}, but this machine has {torch.cuda.device_count()} GPUs and each "
            "process needs one: lower training.processes"
        )
    for name in LAUNCHER_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ""  # none: Dagster and the command line have their handlers
    context = get_context("forkserver")  # one process imports torch and transformers for all ranks of all groups
    context.set_forkserver_preload([__name__, *PRELOADED])
    reports: ReportQueue = context.SimpleQueue()
    with TemporaryDirectory(prefix="pixrec-") as folder:
        rendezvous = (Path(folder) / "rendezvous").as_uri()
        given = (world_size, rendezvous, reports, log_level(), function)
        group: Any = start_processes(
            "training",
            _run_rank,
            args={rank: (rank, *given) for rank in range(world_size)},
            envs={rank: dict(os.environ) for rank in range(world_size)},  # the server may be older than a variable
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            start_method=context.get_start_method(),
        )
        try:
            while (result := group.wait(POLL_S, POLL_S)) is None:
                forward_reports(reports, on_report)
            forward_reports(reports, on_report)
            if result.is_failed():
                raise _failure(group, result)
        finally:
            group.close(signal.SIGKILL)  # at once: files are written completely or not at all
            for traceback in group._pc.error_files:  # the launcher leaves them
                files.remove(Path(traceback))


def _run_rank(
    rank: int,
    world_size: int,
    rendezvous: str,
    reports: ReportQueue,
    level: int,
    function: Callable[..., None],
) -> None:
    """Join the group and call the function; runs in each process."""
    gc.freeze()  # a collection would copy the objects that the ranks share with their server
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all processes; the parent handles it
    end_with_parent(signal.SIGKILL)  # the launcher does not, and another training may take the parent's lock
    threads = max(1, torch.get_num_threads() // world_size)
    join_process_group(rank, world_size, rendezvous, threads, device=rank, loopback=True)
    call_and_report(function, reports, level)
    distributed.destroy_process_group()
    atexit.register(os._exit, 0)  # skips the interpreter's clean-up, during which threads of libraries may crash


def _failure(group: Any, result: RunProcsResult) -> Exception:
    """Return the error of a group that failed.

    The launcher names the process that it saw first. A killed process breaks the connections of the others, so the
    first may be one of these.
    """
    ((rank, failure),) = result.failures.items()
    codes = [process.exitcode for process in group._pc.processes]
    by_launcher = -signal.SIGTERM  # how it ends the others
    killed = [n for n, code in enumerate(codes) if code < 0 and (code != by_launcher or n == rank)]
    if killed:
        rank = rank if rank in killed else killed[0]
        return lost_process_error(rank, len(codes), f"was killed by {signal.Signals(-codes[rank]).name}")
    if Path(failure.error_file).exists():  # has the traceback
        return ChildFailedError("training", result.failures)
    return lost_process_error(rank, len(codes), f"ended with exit code {failure.exitcode}")
