"""Processes that start in no time: they fork from a server process that has imported the slow modules."""

import atexit
import gc
import importlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import NamedTemporaryFile
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = [
    *("pytest", "pixrec_core.data.images", "tests.core.shop", "transformers.trainer"),
    *("dagster", "great_expectations", "lightgbm", "matplotlib.figure", "sklearn.feature_extraction.text"),
]
CONTEXT.set_forkserver_preload(PRELOADED)
COMMANDS = {"pixrec": "pixrec_assets.cli", "dg": "dagster_dg_cli.cli"}  # modules whose `main` a command runs


def exit_code(target: Callable[..., object], *arguments: Any) -> int | None:
    """Run a function in a new process; return its exit code, or minus the signal that ended it."""
    process = CONTEXT.Process(target=_call, args=(target, *arguments))
    process.start()
    process.join()
    return process.exitcode


def _call(target: Callable[..., object], *arguments: Any) -> None:
    gc.freeze()  # a collection would copy the server's memory, which takes half a second
    target(*arguments)


def run_command(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> CompletedProcess[str]:
    """Run `pixrec ...`, `dg ...` or `python -c ...` in a folder, with the output of both streams in `stdout`.

    Variables that a preloaded library reads when it is imported have no effect.
    """
    with NamedTemporaryFile("r", encoding="utf-8") as output:
        code = exit_code(_become, list(command), folder, dict(environment), output.name)
        return CompletedProcess(command, code or 0, output.read())


def _become(command: list[str], folder: Path, environment: dict[str, str], output: str) -> None:
    with Path(output).open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    try:
        sys.argv[:] = command
        if command[0] == "python":
            del sys.argv[:2]
            exec(sys.argv[0], {"__name__": "__main__"})
        else:
            importlib.import_module(COMMANDS[command[0]]).main()
    finally:
        atexit._run_exitfuncs()
