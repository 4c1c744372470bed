"""What processes that train together tell the one that started them, however that was."""

import logging
from collections.abc import Callable
from logging.handlers import QueueHandler
from typing import Any, Final, Protocol

from torch import distributed

from pixrec_core.errors import LostProcessError, PixRecError
from pixrec_core.training.trainer import Epoch

CORE: Final = logging.getLogger("pixrec_core")

Report = logging.LogRecord | PixRecError | Epoch


class Reports(Protocol):
    """A queue between processes."""

    def put(self, report: Report, /) -> None: ...

    def get(self) -> Report: ...

    def empty(self) -> bool: ...


def take_part(function: Callable[..., None], arguments: tuple[Any, ...], reports: Reports, level: int) -> None:
    """Call a function in a process of a group, and tell what the first of them logs and says.

    Args:
        function: called with `arguments` and `on_epoch`.
        arguments: of the function.
        reports: read by the process that started the group.
        level: from which on it wants log lines.

    Raises:
        PixRecError: of the function, from any process; it is told as well.
    """
    first = distributed.get_rank() == 0
    if first:
        CORE.setLevel(level)
        CORE.addHandler(_Forward(reports))  # type: ignore[arg-type]  # all that it wants is `enqueue`
        CORE.propagate = False  # or whatever else listens in this process would tell each line a second time
    try:
        function(*arguments, on_epoch=reports.put if first else lambda _: None)
    except PixRecError as error:
        reports.put(error)
        raise


def relay(reports: Reports, on_epoch: Callable[[Epoch], None]) -> None:
    """Log, or hand on, whatever has been told up to now.

    Raises:
        PixRecError: what one of the processes raised.
    """
    while not reports.empty():
        report = reports.get()
        if isinstance(report, PixRecError):
            raise report
        if isinstance(report, logging.LogRecord):
            logging.getLogger(report.name).handle(report)
        else:
            on_epoch(report)


def lost(rank: int, count: int, how: str) -> LostProcessError:
    """The error for a process that is gone. `how` tells it after "process 1 of the 2 that trained"."""
    return LostProcessError(
        f"process {rank} of the {count} that trained (0 to {count - 1}) {how}, and the others were ended; "
        "SIGKILL mostly means that memory ran out: then lower training.batch_size or training.processes. "
        "Run again, and training goes on after its last whole epoch"
    )


class _Forward(QueueHandler):
    """Log records to the parent, through a queue that has no threads."""

    def enqueue(self, record: logging.LogRecord) -> None:
        self.queue.put(record)  # type: ignore[attr-defined]
