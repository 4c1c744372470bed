"""Terminal output of the commands: both consoles, the core's log lines, durations; and which signal ended a command.

Nothing printed here contains a terminal control from data: texts of a catalogue pass `printable`.
"""

import io
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from pixrec_core.printable import printable


class PrintableConsole(Console):
    """A console whose own styles are the only controls that it writes."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)


out = PrintableConsole(highlight=False, soft_wrap=True)
err = PrintableConsole(highlight=False, soft_wrap=True, stderr=True)


def echo(text: str) -> None:
    """Print a document as it is, without styles."""
    click.echo(printable(text), nl=False)


def warn(text: str) -> None:
    """Print a warning on standard error; the run continues."""
    err.print(f"warning: {text}", style="yellow", markup=False)


class _LogFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def use_utf8() -> None:
    """Start the command again in Python's UTF-8 mode under a locale that cannot write every path and text."""
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        os.execve(sys.executable, sys.orig_argv, os.environ | {"PYTHONUTF8": "1"})  # noqa: S606


def prepare_streams() -> None:
    """Let standard output and error write every text in any locale, and warnings of settings as one line, once."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    shown: set[str] = set()
    default = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if not issubclass(category, FutureWarning):
            default(message, category, *place, **more)
        elif str(message) not in shown:
            shown.add(str(message))
            warn(str(message))

    warnings.showwarning = show


STOPPING: Final = (signal.SIGINT, signal.SIGTERM)


def show_progress(partition: str = "") -> None:
    """Print the core's log lines, with the partition in front if several run at once."""
    log = logging.getLogger("pixrec_core")
    log.setLevel(logging.INFO)
    handler = logging.StreamHandler()
    prefix = f"{partition}: ".replace("%", "%%") if partition else ""
    handler.setFormatter(_LogFormatter(f"  %(asctime)s {prefix}%(message)s", "%X"))
    log.handlers = [handler]


def duration(seconds: float) -> str:
    """Seconds in words: `0.4 s`, `2 min 24 s`, `3 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class Signals:
    """Records which of SIGINT and SIGTERM arrived; both raise KeyboardInterrupt.

    Dagster replaces signal handlers while a run is active, and its handlers do not distinguish the two. Python writes
    the number of each signal to the wake-up descriptor, whichever handler is installed.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @property
    def last(self) -> signal.Signals:
        """The last signal that arrived; SIGINT if there was none, as when a prompt is aborted."""
        with os.fdopen(os.dup(self._descriptor), "rb") as pipe:
            arrived = [number for number in pipe.read() or b"" if number in STOPPING]
        return signal.Signals(arrived[-1]) if arrived else signal.SIGINT


@contextmanager
def stopped_by_signals() -> Iterator[Signals]:
    """Within the block SIGTERM raises KeyboardInterrupt as SIGINT does; yield the record of which arrived."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    handlers = {number: signal.signal(number, signal.default_int_handler) for number in STOPPING}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield Signals(reader)
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)
