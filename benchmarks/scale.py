"""How each stage grows with its input: seconds, processor seconds and peak memory, each in a process of its own.

    python -m benchmarks.scale [--users 500] [--factor 4] [--sizes 3]

Shops of the generator, each `factor` times as large as the one before in users and items alike, so reviews grow as
users do. Photos are the generator's files, so no network is in it; a training has one epoch. Prints every stage at
every size, and the power of the input by which its processor seconds grew: 1 is in proportion, 2 is its square (users
x items, where both grow). What a stage needs to start at all (imports, contracts) falls out of it: the power is that of
what the last step of size added against what the step before it did. A stage that hardly grew has none.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.generated_shop import shop
from pixrec_core import pipeline

ITEMS_A_USER = 0.4
NOISE_S = 0.3  # a difference of processor seconds that says nothing
STAGES = [stage for stage in pipeline.STAGES if stage.partitioned_by != "joint"]


def measure(folder: Path, users: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Every stage of one size, by name, each in a fresh process."""
    for stage in STAGES:
        given = ["--folder", str(folder), "--users", str(users), "--stage", stage.name]
        run = [sys.executable, "-m", "benchmarks.scale", *given]
        yield stage.name, json.loads(subprocess.run(run, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])


def run(folder: Path, users: int, name: str) -> None:
    """One stage here."""
    stage = next(each for each in STAGES if each.name == name)
    at = shop({"users": users, "items": int(users * ITEMS_A_USER)}, folder)
    start = time.perf_counter()
    stage.materialise(at if stage.partitioned_by == "variant" else at.with_variant(None))
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seen = {
        "seconds": time.perf_counter() - start,
        "cpu": sum(each.ru_utime + each.ru_stime for each in usage),
        "memory": max(each.ru_maxrss for each in usage) / 1024,
    }
    print(json.dumps(seen), flush=True)


def power(costs: list[float], factor: float) -> float | None:
    """By which power of the input a cost grew, whatever it starts from; None where it hardly did."""
    if len(costs) < 3:
        return None
    before, after = costs[-2] - costs[-3], costs[-1] - costs[-2]
    return math.log(after / before) / math.log(factor) if min(before, after) > NOISE_S else None


def show(sizes: list[int], factor: int, found: dict[int, dict[str, dict[str, float]]]) -> None:
    """The table."""
    for name in [stage.name for stage in STAGES]:
        rows = [found[users][name] for users in sizes]
        told = "  ".join(f"{row['seconds']:8.1f} s {row['cpu']:8.1f} cpu {row['memory']:6,.0f} MiB" for row in rows)
        grown = power([row["cpu"] for row in rows], factor)
        print(f"{name:13} {told}   {f'^{grown:.2f}' if grown else 'hardly'}", flush=True)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=500, help="of the smallest shop")
    parser.add_argument("--factor", type=int, default=4)
    parser.add_argument("--sizes", type=int, default=3)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    given: Any = parser.parse_args()
    if given.stage:
        run(given.folder, given.users, given.stage)
        return
    sizes = [given.users * given.factor**n for n in range(given.sizes)]
    print(f"{os.cpu_count()} cores; users: {', '.join(f'{n:,}' for n in sizes)}; items: {ITEMS_A_USER} a user")
    found: dict[int, dict[str, dict[str, float]]] = {}
    for users in sizes:
        with tempfile.TemporaryDirectory() as folder:
            found[users] = dict(measure(Path(folder), users))
    show(sizes, given.factor, found)


if __name__ == "__main__":
    main()
