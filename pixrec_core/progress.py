"""Progress as log lines: the same ones reach a terminal and the Dagster UI."""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

LINE_EVERY_S = 5.0


def track(items: Iterable[T], what: str, total: int | None, log: logging.Logger) -> Iterator[T]:
    """Yield from `items`; what takes longer than a few seconds logs `what`, count, share and rate as it goes.

    Where `total` is not known beforehand, the share is left out.
    """
    start = last = time.monotonic()
    done = 0
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= LINE_EVERY_S:
            last = now
            rate = done / (now - start)
            share = f" of {total:,} ({100 * done / total:.0f} %)" if total else ""
            log.info("%s: %s%s, %.0f/s", what, f"{done:,}", share, rate)
    if last > start:
        log.info("%s: %s done in %.1f s", what, f"{done:,}", time.monotonic() - start)
