"""Checks of Python, memory, PyTorch and its device."""

import os
import platform
import sys
from collections.abc import Iterator
from typing import Final

import psutil

from pixrec_assets.doctor.finding import Finding, Level

PYTHON: Final = (3, 11)
SETUP: Final = "reinstall PixRec: `make setup` in a checkout, else `pip install`"


def check_machine() -> Iterator[Finding]:
    """Yield findings on Python, cores and memory, PyTorch and its device."""
    yield _python()
    memory = psutil.virtual_memory()
    yield Finding(
        "machine", Level.OK, f"{os.cpu_count()} cores, {_gib(memory.available)} of {_gib(memory.total)} memory free"
    )
    yield _torch()


def _python() -> Finding:
    text = f"{platform.python_version()} in {sys.prefix}"
    if sys.version_info < PYTHON:
        return Finding("python", Level.FAULT, text, f"PixRec needs {'.'.join(map(str, PYTHON))} or newer: {SETUP}")
    return Finding("python", Level.OK, text)


def _torch() -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a CUDA library is missing
        return Finding("torch", Level.FAULT, f"cannot be imported: {error}", SETUP)
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        text = f"{torch.__version__} on {properties.name}, {_gib(properties.total_memory)} of GPU memory"
        return Finding("torch", Level.OK, text)
    if torch.version.cuda:
        fix = "check `nvidia-smi` and the driver, or use the CPU"
        return Finding("torch", Level.WARNING, f"{torch.__version__} is built for CUDA but sees no GPU", fix)
    return Finding("torch", Level.OK, f"{torch.__version__} on the CPU, enough for small backbones such as `tiny`")


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
