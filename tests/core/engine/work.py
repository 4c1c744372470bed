"""Functions that tests run in workers, in a module that worker processes can import."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from pixrec_core.errors import ContractError


def doubled(shard):
    return 2 * shard


def slow_at_first(shard):
    time.sleep(0.2 if shard == 0 else 0)
    return shard


def broken_at_two(shard):
    if shard == 2:
        raise ContractError("items: 7 of 9 have no title; correct `items.csv`")
    return shard


def deadly(shard):
    os.kill(os.getpid(), signal.SIGKILL)


def process(shard):
    return os.getpid()


@dataclass(frozen=True)
class Stuck:
    """The second shard never ends; the first one fails when the second has started."""

    folder: Path

    def __call__(self, shard):
        if shard == 1:
            (self.folder / "stuck.partial").write_text(str(os.getpid()))
            (self.folder / "stuck.partial").rename(self.folder / "stuck")
            signal.pause()
        wait_for(self.folder / "stuck")
        raise ContractError("the first shard is broken")


class Costly:
    """Records in a folder how often it is sent to a process, and which processes use it."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __setstate__(self, state):
        self.__dict__.update(state)
        (self.folder / f"sent.{os.getpid()}.{time.monotonic_ns()}").touch()

    def __call__(self, shard):
        (self.folder / f"used.{os.getpid()}").touch()
        time.sleep(0.05)
        return shard


@dataclass(frozen=True)
class Waiting:
    """Stops at one shard until its process is killed there; the second attempt at that shard succeeds."""

    folder: Path
    shard: int

    def __call__(self, shard):
        if shard == self.shard and not (self.folder / "victim").exists():
            (self.folder / "victim.partial").write_text(str(os.getpid()))
            (self.folder / "victim.partial").rename(self.folder / "victim")
            signal.pause()
        return 2 * shard


def kill_waiting_process(folder: Path) -> int:
    """Kill the process that `Waiting` stopped in, and return its id."""
    wait_for(folder / "victim")
    victim = int((folder / "victim").read_text())
    os.kill(victim, signal.SIGKILL)
    return victim


def wait_for(path: Path) -> None:
    """Wait until another process has created a file; only the test's own timeout ends it."""
    while not path.exists():
        time.sleep(0.01)
