"""Members of a torch process group that report to the process that started them; the same for all launchers."""

import logging
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from logging.handlers import QueueHandler
from typing import Final, Protocol

import torch
from torch import distributed

from pixrec_core.engine._contract import Report
from pixrec_core.errors import LostProcessError, PixRecError

POLL_S: Final = 0.2  # between two looks at the processes and their reports

#: Longest wait of a collective. The launcher sees dead processes; a living one may validate for hours.
COLLECTIVE_TIMEOUT: Final = timedelta(days=7)

_ROOT: Final = logging.getLogger("pixrec_core")


class ReportQueue(Protocol):
    """A queue between processes, of log records, reports and errors."""

    def put(self, report: logging.LogRecord | Report | PixRecError, /) -> None: ...

    def get(self) -> logging.LogRecord | Report | PixRecError: ...

    def empty(self) -> bool: ...


def log_level() -> int:
    """Return the lowest level of log records that this process logs."""
    return _ROOT.getEffectiveLevel()


def join_process_group(
    rank: int, world_size: int, rendezvous: str, threads: int, *, device: int, loopback: bool
) -> None:
    """Join a process group, with one GPU per process if there are GPUs.

    Args:
        rank: rank of this process.
        world_size: number of processes.
        rendezvous: URL, the same for all: a file that does not exist yet, or a free port of the first process.
        threads: CPU threads of this process.
        device: index of this process's GPU among those that it sees.
        loopback: whether all processes are on this machine; torch would listen on a public address by default.
    """
    torch.set_num_threads(threads)
    variables = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": device, "LOCAL_WORLD_SIZE": world_size}
    os.environ |= {name: str(value) for name, value in (variables | {"OMP_NUM_THREADS": threads}).items()}
    if loopback:
        interface = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        os.environ |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(device)
    distributed.init_process_group(
        "nccl" if gpu else "gloo",
        init_method=rendezvous,
        rank=rank,
        world_size=world_size,
        timeout=COLLECTIVE_TIMEOUT,
    )


def call_and_report(function: Callable[..., None], reports: ReportQueue, level: int) -> None:
    """Call a function in a process of a group, and put log records and reports of the first process into a queue.

    The function is called with `on_report`. The process that started the group reads the queue; it logs no record below
    `level`.

    Raises:
        PixRecError: raised by the function in any of the processes; put into the queue as well.
    """
    first = distributed.get_rank() == 0
    if first:
        _ROOT.setLevel(level)
        _ROOT.addHandler(_QueueHandler(reports))  # type: ignore[arg-type]  # it only uses `put`
        _ROOT.propagate = False  # a handler of the root logger would print each line a second time
    try:
        function(on_report=reports.put if first else lambda _: None)
    except PixRecError as error:
        reports.put(error)
        raise


def forward_reports(reports: ReportQueue, on_report: Callable[[Report], None]) -> None:
    """Log the records and pass on the reports that are in the queue.

    Raises:
        PixRecError: raised in one of the processes.
    """
    while not reports.empty():
        report = reports.get()
        if isinstance(report, PixRecError):
            raise report
        if isinstance(report, logging.LogRecord):
            logging.getLogger(report.name).handle(report)
        else:
            on_report(report)


def lost_process_error(rank: int, world_size: int, reason: str) -> LostProcessError:
    """Return the error for a dead process; `reason` continues "training process 1 (of 0 to 3)"."""
    return LostProcessError(
        f"training process {rank} (of 0 to {world_size - 1}) {reason}, so the others were ended. SIGKILL usually means "
        "that memory ran out: then lower training.batch_size or training.processes. Run the same command again: "
        "training resumes after its last complete epoch"
    )


class _QueueHandler(QueueHandler):
    """Puts log records into a queue that has no `put_nowait`."""

    def enqueue(self, record: logging.LogRecord) -> None:
        self.queue.put(record)  # type: ignore[attr-defined]
