"""The interpreter, PyTorch and what it computes on."""

import os
import platform
import sys
from collections.abc import Iterator
from typing import Final

import psutil

from pixrec_assets.doctor.finding import Finding, Level

PYTHON: Final = (3, 11)
SETUP: Final = "install it anew: `make setup` in a checkout, else `pip install` of the package"


def findings() -> Iterator[Finding]:
    """Python, cores and memory, PyTorch and its device."""
    yield _python()
    memory = psutil.virtual_memory()
    yield Finding(
        "machine", Level.OK, f"{os.cpu_count()} cores, {_gib(memory.available)} of {_gib(memory.total)} memory free"
    )
    yield _torch()


def _python() -> Finding:
    told = f"{platform.python_version()} in {sys.prefix}"
    if sys.version_info < PYTHON:
        return Finding("python", Level.FAULT, told, f"PixRec needs {'.'.join(map(str, PYTHON))} or newer: {SETUP}")
    return Finding("python", Level.OK, told)


def _torch() -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library of CUDA that is not there
        return Finding("torch", Level.FAULT, f"cannot be imported: {error}", SETUP)
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        told = f"{torch.__version__} on {properties.name}, {_gib(properties.total_memory)} of GPU memory"
        return Finding("torch", Level.OK, told)
    if torch.version.cuda:
        mend = "check `nvidia-smi` and the driver, or go on with the CPU"
        return Finding("torch", Level.WARNING, f"{torch.__version__} is built for CUDA but sees no GPU", mend)
    return Finding("torch", Level.OK, f"{torch.__version__} on the CPU, which serves for the backbone `tiny`")


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
