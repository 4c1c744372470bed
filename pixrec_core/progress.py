"""Progress as log lines, which reach both a terminal and the Dagster UI."""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

LINE_EVERY_S = 5.0


def track(items: Iterable[T], noun: str, total: int | None, log: logging.Logger) -> Iterator[T]:
    """Yield from `items` and log count, share and rate every `LINE_EVERY_S` seconds; short loops log nothing.

    Args:
        items: to iterate over.
        noun: name of the items in the log, in the plural.
        total: number of items; None if unknown, then no share is logged.
        log: receives the lines.
    """
    start = last = time.monotonic()
    done = 0
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= LINE_EVERY_S:
            last = now
            share = f" of {total:,} ({100 * done / total:.0f} %)" if total else ""
            log.info("%s: %s%s, %.0f/s", noun, f"{done:,}", share, done / (now - start))
    if last > start:
        log.info("%s: %s done in %.1f s", noun, f"{done:,}", time.monotonic() - start)
