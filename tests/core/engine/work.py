"""What tests let workers do: functions of a module, which a worker process can import."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from pixrec_core.errors import ContractError

WAIT_S = 60  # for another process; a test that works never waits so long


def doubled(shard):
    return 2 * shard


def slow_at_first(shard):
    time.sleep(0.2 if shard == 0 else 0)
    return shard


def broken_at_two(shard):
    if shard == 2:
        raise ContractError("items: 7 of 9 have no title; mend `items.csv`")
    return shard


def deadly(shard):
    os.kill(os.getpid(), signal.SIGKILL)


def process(shard):
    return os.getpid()


@dataclass(frozen=True)
class Stuck:
    """The second shard is long at work when the first one fails."""

    folder: Path

    def __call__(self, shard):
        if shard == 1:
            (self.folder / "stuck.partial").write_text(str(os.getpid()))
            (self.folder / "stuck.partial").rename(self.folder / "stuck")
            time.sleep(WAIT_S)
        wait_for(self.folder / "stuck")
        raise ContractError("the first shard is broken")


@dataclass(frozen=True)
class Mourned:
    """Leaves a file where it is let go."""

    folder: Path

    def __call__(self, shard):
        return os.getpid()

    def __del__(self):
        (self.folder / f"gone.{os.getpid()}").touch()


class Costly:
    """Counts in a folder how often it is brought to a process, and which processes used it."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __setstate__(self, state):
        self.__dict__.update(state)
        (self.folder / f"brought.{os.getpid()}.{time.monotonic_ns()}").touch()

    def __call__(self, shard):
        (self.folder / f"used.{os.getpid()}").touch()
        time.sleep(0.05)
        return shard


@dataclass(frozen=True)
class Waiting:
    """Stops at one shard until it is killed there; the second try of that shard goes on."""

    folder: Path
    shard: int

    def __call__(self, shard):
        if shard == self.shard and not (self.folder / "victim").exists():
            (self.folder / "victim.partial").write_text(str(os.getpid()))
            (self.folder / "victim.partial").rename(self.folder / "victim")
            time.sleep(WAIT_S)
        return 2 * shard


def kill_what_waits(folder: Path) -> int:
    """Kill the process whose id a test's function left in `folder/victim`."""
    wait_for(folder / "victim")
    victim = int((folder / "victim").read_text())
    os.kill(victim, signal.SIGKILL)
    return victim


def wait_for(path: Path) -> None:
    for _ in range(WAIT_S * 100):
        if path.exists():
            return
        time.sleep(0.01)
    raise TimeoutError(path)
