"""Start-up: wall and CPU seconds of commands from start to exit, next to what they cannot do without.

    python -m benchmarks.startup [--folder FOLDER] [--methods ease sasrec] [--rounds 7]

`FOLDER` is a project whose sample has been promoted (`pixrec demo` in it); without one, only commands that need no data
run. Every round runs each line once, so that a busy minute does not fall on one line alone. A recommendation needs what
its method needs: a baseline without a network needs neither PyTorch nor transformers, a dual tower both.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import polars as pl

from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import USER
from pixrec_core.serving.promotion import read_promotion

PIXREC = str(Path(sys.executable).with_name("pixrec"))
DATASET = "sample"

#: Name of a line -> code that it runs.
REFERENCES = {
    "python -c pass": "pass",
    "import torch": "import torch",
    "import torch and a transformers model": "import torch; from transformers import AutoModel, PreTrainedModel",
    "import dagster": "import dagster",
}
CODE_LOCATION = "from pixrec_assets.definitions import defs; defs.get_repository_def()"


def commands_of(folder: Path | None, methods: Sequence[str]) -> dict[str, list[str]]:
    """The command of each line, by name."""
    lines = {name: [sys.executable, "-c", code] for name, code in REFERENCES.items()}
    lines["pixrec --help"] = [PIXREC, "--help"]
    lines["code location of `dagster dev`"] = [sys.executable, "-c", CODE_LOCATION]
    if folder:
        lines["pixrec status"] = [PIXREC, "status"]
        paths = DatasetPaths.of(folder / "data", DATASET)
        promotion, user = read_promotion(paths.promoted), pl.read_parquet(paths.interactions)[USER][0]
        for method in (promotion.method, *methods):
            lines[f"pixrec recommend --method {method}"] = [
                PIXREC,
                "recommend",
                DATASET,
                "--user",
                user,
                "--method",
                method,
            ]
    return lines


def run(command: list[str], folder: Path | None) -> tuple[float, float]:
    """Run a command; return its wall and CPU seconds."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, help="project with a promoted sample")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--methods", nargs="*", default=["ease", "sasrec"], help="ask these, besides the one that serves"
    )
    arguments = parser.parse_args()
    lines = commands_of(arguments.folder, arguments.methods)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in lines}
    for command in lines.values():
        run(command, arguments.folder)  # reads the files from disk once
    for _ in range(arguments.rounds):
        for name, command in lines.items():
            times[name].append(run(command, arguments.folder))
    print(f"load average {os.getloadavg()[0]:.1f}; wall: median (fastest to slowest); CPU: median")
    for name, measured in times.items():
        wall, cpu = zip(*measured, strict=True)
        print(f"{name:45} {median(wall):5.2f} s ({min(wall):.2f} to {max(wall):.2f})  CPU {median(cpu):5.2f} s")


if __name__ == "__main__":
    main()
