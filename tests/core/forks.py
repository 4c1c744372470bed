"""Processes for tests that kill one: they fork from a process that has imported what takes seconds, and has done
nothing else."""

import multiprocessing
from collections.abc import Callable
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pytest", "pixrec_core.data.images", "tests.core.shop", "transformers.trainer"])


def exit_code(target: Callable[..., object], *arguments: Any) -> int | None:
    """Run a function in a process of its own; minus the signal that ended it."""
    process = CONTEXT.Process(target=target, args=arguments)
    process.start()
    process.join()
    return process.exitcode
