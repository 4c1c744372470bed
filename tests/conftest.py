"""Fixtures that all tests share."""

import gc
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadFileScheduling

# The same examples in every run, so that a test fails for a change only; `--hypothesis-profile default` draws others.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")

# Tests run side by side: more threads than cores would wait for each other. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Read when Great Expectations is imported, which `forks.py` does before the product can set it.
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")

# Ray starts its workers with niceness 15: beside other work, tests would wait minutes for a few imports.
os.environ.setdefault("RAY_worker_niceness", "0")

# A shell starts background jobs with Ctrl-C ignored: tests that send the signal would wait without end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data sets next to the checkout, if there is one."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data sets in {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture
def assets_anew() -> Iterator[None]:
    """Let the test import `pixrec_assets` as a new process does: Dagster's partitions are read at import."""

    def remove() -> dict[str, ModuleType]:
        return {name: sys.modules.pop(name) for name in [*sys.modules] if name.partition(".")[0] == "pixrec_assets"}

    before = remove()
    yield
    remove()
    sys.modules.update(before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount point of an in-memory file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system needs root and the right to mount")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


class _Scheduling(LoadFileScheduling):
    """Each process takes whole files, whose fixtures it shares, and one takes all files that use Ray."""

    def _split_scope(self, nodeid: str) -> str:
        return "ray" if nodeid.startswith("tests/core/engine/") else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Scheduling:
    """Replace the scheduler of `--dist`."""
    return _Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run top-level files first, then those with most slow tests, so that the processes end at about the same time."""
    top = Path(__file__).parent
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (item.path.parent != top, -slow[item.path]))


def pytest_collection_finish() -> None:
    """Collect garbage less often: each search of all imported modules takes a quarter of a second."""
    gc.freeze()
    gc.set_threshold(10_000, 10, 50)
