"""Processes that tests kill; they fork from a server process that has imported the slow modules."""

import multiprocessing
from collections.abc import Callable
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = ["pytest", "pixrec_core.data.images", "tests.core.shop", "transformers.trainer"]
CONTEXT.set_forkserver_preload(PRELOADED)


def exit_code(target: Callable[..., object], *arguments: Any) -> int | None:
    """Run a function in a new process; return its exit code, or minus the signal that ended it."""
    process = CONTEXT.Process(target=target, args=arguments)
    process.start()
    process.join()
    return process.exitcode
