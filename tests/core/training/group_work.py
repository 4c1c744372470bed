"""What processes of a group do in tests; a small module, since each process imports it."""

import logging
import os
import signal

import psutil
import torch

from pixrec_core.errors import ContractError


def log_and_wait(*, on_report) -> None:
    logging.getLogger("pixrec_core.somewhere").info("at work in %d", os.getpid())
    processes = [psutil.Process(), psutil.Process(os.getppid())]
    sockets = [each for process in processes for each in process.net_connections("inet")]
    listening = [each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN]
    on_report({"pid": os.getpid(), "addresses": listening})
    signal.pause()


def refuse(*, on_report) -> None:
    if torch.distributed.get_rank() == 1:
        raise ContractError("nothing to train on")
    torch.distributed.barrier()


def fail_in_another_way(*, on_report) -> None:
    if torch.distributed.get_rank() == 1:
        raise ValueError("a mistake in the code")
    signal.pause()
