"""What people see of a command: its two consoles, the core's progress lines, and which signal ended it."""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console

out = Console(highlight=False, soft_wrap=True)
err = Console(highlight=False, soft_wrap=True, stderr=True)

STOPPING: Final = (signal.SIGINT, signal.SIGTERM)


def show_progress(place: str = "") -> None:
    """The core's log lines on the terminal, behind the partition that they are about where several are under way."""
    log = logging.getLogger("pixrec_core")
    log.setLevel(logging.INFO)
    handler = logging.StreamHandler()
    behind = f"{place}: ".replace("%", "%%") if place else ""
    handler.setFormatter(logging.Formatter(f"  %(asctime)s {behind}%(message)s", "%X"))
    log.handlers = [handler]


class Signals:
    """Which of SIGINT and SIGTERM came; both raise KeyboardInterrupt.

    Dagster puts handlers of its own in place while a run is under way, which do not tell the two apart;
    Python writes each signal's number to the wake-up descriptor whoever handles it.
    """

    def __init__(self, reader: int) -> None:
        self._reader = reader

    @property
    def last(self) -> signal.Signals:
        """The last one that came; SIGINT where none did, as a prompt that is left says it."""
        with os.fdopen(os.dup(self._reader), "rb") as pipe:
            came = [number for number in pipe.read() or b"" if number in STOPPING]
        return signal.Signals(came[-1]) if came else signal.SIGINT


@contextmanager
def stopped_by_signals() -> Iterator[Signals]:
    """Within, SIGTERM raises KeyboardInterrupt as SIGINT does, and it can be asked which of them came."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    before = {number: signal.signal(number, signal.default_int_handler) for number in STOPPING}
    woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield Signals(reader)
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)
