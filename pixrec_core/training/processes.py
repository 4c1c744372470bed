"""Training in several processes of one machine, under one parent that holds the lock and tells what they tell.

They are spawned rather than forked, since the parent has torch and its threads already, and by torch itself, which
ends all of them where one fails. They find each other through a file and speak over the loopback interface alone:
nothing of this is of use to another machine.
"""

import os
import signal
import socket
import sys
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context, parent_process
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any, Final

import torch
from torch import distributed
from torch.multiprocessing.spawn import ProcessContext, ProcessException, ProcessExitedException, start_processes

from pixrec_core import files
from pixrec_core.errors import PixRecError, SettingsError
from pixrec_core.training.reports import CORE, Reports, lost, relay, take_part
from pixrec_core.training.trainer import Epoch

POLL_S: Final = 0.2

#: Longest wait for another process. A dead one is seen by the parent; a living one may validate for hours.
PATIENCE: Final = timedelta(days=7)


def run(
    function: Callable[..., None], arguments: tuple[Any, ...], count: int, on_epoch: Callable[[Epoch], None]
) -> None:
    """Call a function in `count` processes that form a process group, and wait for all of them.

    Args:
        function: of a module, so that a process can find it; called with `arguments` and `on_epoch`.
        arguments: that can be pickled.
        count: processes.
        on_epoch: told here of what the first process tells. Its log lines are written here too.

    Raises:
        SettingsError: there are fewer GPUs.
        LostProcessError: one was killed, or ended itself.
        PixRecError: what one of them raised.
        ProcessException: one failed in another way; the text is its traceback.
    """
    if torch.cuda.is_available() and torch.cuda.device_count() < count:
        raise SettingsError(
            f"training.processes is {count}, and each needs a GPU of its own; "
            f"this machine has {torch.cuda.device_count()}, so set it to that or less"
        )
    reports: Reports = get_context("spawn").SimpleQueue()
    with TemporaryDirectory(prefix="pixrec-") as folder:
        meeting = (Path(folder) / "meeting").as_uri()
        given = (count, meeting, reports, CORE.getEffectiveLevel(), function, arguments)
        # Daemons: should this process end by a way that comes by nothing below, it does not wait for them.
        group = start_processes(_work, given, count, join=False, daemon=True)  # type: ignore[no-untyped-call]
        try:
            while not group.join(POLL_S):
                relay(reports, on_epoch)
            relay(reports, on_epoch)
        except ProcessException as end:
            relay(reports, on_epoch)
            raise _cause(group, end) from end
        finally:
            for process in group.processes:  # at once: whatever is written is whole or not there
                process.kill()
                process.join()
            for traceback in group.error_files:  # read by now; torch leaves them
                files.remove(Path(traceback))


def _cause(group: ProcessContext, end: ProcessException) -> Exception:
    """Why a group ended. One that is killed breaks the connections of the others, which may fail before it is seen."""
    codes = [process.exitcode or 0 for process in group.processes]
    stopped = -signal.SIGTERM  # how the group ends those that are left
    killed = [rank for rank, code in enumerate(codes) if code < 0 and (code != stopped or rank == end.error_index)]
    if killed:
        rank = end.error_index if end.error_index in killed else killed[0]
        how = f"was killed by {signal.Signals(-codes[rank]).name}"
    elif isinstance(end, ProcessExitedException):
        rank, how = end.error_index, f"ended with exit code {end.exit_code}"
    else:
        return end
    return lost(rank, len(codes), how)


def _work(
    rank: int,
    count: int,
    meeting: str,
    reports: Reports,
    level: int,
    function: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    """One process: join the group, call the function, leave."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; the parent decides
    Thread(target=_end_with_parent, daemon=True).start()
    join(rank, count, meeting, max(1, torch.get_num_threads() // count), device=rank)
    try:
        take_part(function, arguments, reports, level)
    except PixRecError:
        sys.exit(1)
    distributed.destroy_process_group()
    os._exit(0)  # an interpreter that clears up beside the threads of its libraries complains of what they hold


def join(rank: int, count: int, meeting: str, threads: int, *, device: int, loopback: bool = True) -> None:
    """Enter a process group, with a GPU where there are some.

    accelerate reads the environment; the addresses that torch would take by itself can be reached from outside.

    Args:
        rank: number of this process, from 0.
        count: processes of the group.
        meeting: URL for all, of a file that is not there yet, or of a free port of the first.
        threads: of the CPU, for this process.
        device: GPU of this process among those that it sees.
        loopback: whether all are on this machine.
    """
    torch.set_num_threads(threads)
    place = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": device, "LOCAL_WORLD_SIZE": count}
    os.environ |= {name: str(value) for name, value in (place | {"OMP_NUM_THREADS": threads}).items()}
    if loopback:
        name = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        os.environ |= {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(device)
    distributed.init_process_group(
        "nccl" if gpu else "gloo", init_method=meeting, rank=rank, world_size=count, timeout=PATIENCE
    )


def _end_with_parent() -> None:
    """A parent that was killed can end nobody; its lock is free, and another may be training here already."""
    parent = parent_process()
    assert parent, "called in a process that has one"
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)
