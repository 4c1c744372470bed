"""Growth of each stage with its input: seconds, CPU seconds and peak memory, each stage in a fresh process.

    python -m benchmarks.scale [--users 500] [--factor 4] [--sizes 3]

Each generated shop has `factor` times the users and items of the one before. Photos are local files, so no network is
involved; a training has one epoch. Prints every stage at every size, and the exponent by which its CPU seconds grow
with the input: 1 is linear, 2 is quadratic (users x items, where both grow). The exponent compares the increase of the
last step with that of the step before, so constant costs (imports, data contracts) do not count. A stage that hardly
grows has no exponent.
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

ITEMS_PER_USER = 0.4
NOISE_S = 0.3  # smaller differences of CPU seconds are noise
STAGES = [stage for stage in pipeline.STAGES if stage.partitioned_by != "joint"]


def measure_stages(folder: Path, users: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield name and measurements of every stage at one size, each in a fresh process."""
    for stage in STAGES:
        given = ["--folder", str(folder), "--users", str(users), "--stage", stage.name]
        run = [sys.executable, "-m", "benchmarks.scale", *given]
        yield stage.name, json.loads(subprocess.run(run, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])


def run_stage(folder: Path, users: int, name: str) -> None:
    """Run one stage in this process and print its measurements."""
    stage = next(each for each in STAGES if each.name == name)
    work = shop({"users": users, "items": int(users * ITEMS_PER_USER)}, folder)
    start = time.perf_counter()
    stage.materialise(work if stage.partitioned_by == "variant" else work.with_variant(None))
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    measured = {
        "seconds": time.perf_counter() - start,
        "cpu": sum(each.ru_utime + each.ru_stime for each in usage),
        "memory": max(each.ru_maxrss for each in usage) / 1024,
    }
    print(json.dumps(measured), flush=True)


def growth_exponent(costs: list[float], factor: float) -> float | None:
    """Return the exponent by which a cost grows with the input, without its constant part; None if it hardly grows."""
    if len(costs) < 3:
        return None
    before, after = costs[-2] - costs[-3], costs[-1] - costs[-2]
    return math.log(after / before) / math.log(factor) if min(before, after) > NOISE_S else None


def print_table(sizes: list[int], factor: int, found: dict[int, dict[str, dict[str, float]]]) -> None:
    """Print one line per stage."""
    for name in [stage.name for stage in STAGES]:
        rows = [found[users][name] for users in sizes]
        columns = "  ".join(f"{row['seconds']:8.1f} s {row['cpu']:8.1f} cpu {row['memory']:6,.0f} MiB" for row in rows)
        grown = growth_exponent([row["cpu"] for row in rows], factor)
        print(f"{name:13} {columns}   {f'^{grown:.2f}' if grown else 'hardly'}", flush=True)


def main() -> None:
    """Measure all stages at all sizes, or run one stage in a process that this script started."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=500, help="of the smallest shop")
    parser.add_argument("--factor", type=int, default=4)
    parser.add_argument("--sizes", type=int, default=3)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    given: Any = parser.parse_args()
    if given.stage:
        run_stage(given.folder, given.users, given.stage)
        return
    sizes = [given.users * given.factor**n for n in range(given.sizes)]
    print(f"{os.cpu_count()} cores; users: {', '.join(f'{n:,}' for n in sizes)}; items: {ITEMS_PER_USER} per user")
    found: dict[int, dict[str, dict[str, float]]] = {}
    for users in sizes:
        with tempfile.TemporaryDirectory() as folder:
            found[users] = dict(measure_stages(Path(folder), users))
    print_table(sizes, given.factor, found)


if __name__ == "__main__":
    main()
