"""Photos per second: the download stage, a plain serial loop and img2dataset over the same URLs.

    python -m benchmarks.images
    python -m benchmarks.images --memory

All bring the same photos from one loopback server, which waits before each answer as a distant
one would, and decode, shrink and store them as JPEG files: same size, same quality, and as many
requests at a time for ours as for img2dataset, which has its two processes. Server and contestants
run in processes of their own and take turns, so that all meet the same weather. CPU time, which
other work on the machine disturbs less than rates, includes the workers that img2dataset starts.
img2dataset is taken from this Python, else installed in a temporary environment of its own.

With --memory: peak memory of the stage at 10,000 and at 100,000 URLs.
"""

import argparse
import importlib.util
import io
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import polars as pl
import requests
from PIL import Image

from benchmarks.photo_origin import CONTEXT, origin
from pixrec_core import files
from pixrec_core.data import images
from pixrec_core.data.photos import QUALITY
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import IMAGE_URL, ITEM
from pixrec_core.settings import ImageSettings

CORES = 2


class Job(NamedTuple):
    """What a contestant is to do: bring `count` URLs under `base`, at most `size` pixels, `threads` at a time."""

    base: str
    count: int
    size: int
    threads: int

    @property
    def urls(self) -> list[str]:
        """All of them; ours makes its catalogue without the list, whose memory is not the stage's."""
        return [f"{self.base}{number}" for number in range(self.count)]


class Cost(NamedTuple):
    """What it took a contestant."""

    seconds: float
    cpu_s: float
    peak_mib: float


def ours(job: Job, folder: Path) -> float:
    """Seconds that the stage takes."""
    paths = DatasetPaths(folder)
    url = pl.format("{}{}", pl.lit(job.base), pl.int_range(job.count))
    pl.select(url.alias(ITEM), url.alias(IMAGE_URL)).lazy().sink_parquet(paths.items)
    entry = {"path": "unused", "bytes": 1, "sha256": ""}
    files.write_json(paths.raw_manifest, {"reviews": entry, "metadata": entry, "photos": None})
    settings = ImageSettings(size=job.size, threads=job.threads, per_host=job.threads, allow_private_hosts=True)
    start = time.perf_counter()
    stats = images.download_images(settings, paths)
    seconds = time.perf_counter() - start
    assert stats["ok"] == job.count, stats["failed_by_reason"]
    return seconds


def serial(job: Job, folder: Path) -> float:
    """Seconds that one loop takes: get, decode, shrink, save."""
    start = time.perf_counter()
    for number, url in enumerate(job.urls):
        response = requests.get(url, timeout=20)
        response.raise_for_status()
        image = Image.open(io.BytesIO(response.content)).convert("RGB")
        image.thumbnail((job.size, job.size))
        image.save(folder / f"{number}.jpg", quality=QUALITY)
    return time.perf_counter() - start


IMG2DATASET = """
import json, sys, time
from img2dataset import download
if __name__ == "__main__":
    start = time.perf_counter()
    download(**json.loads(sys.argv[1]))
    print("SECONDS", time.perf_counter() - start)
"""


def img2dataset(python: str, job: Job, folder: Path) -> float:
    """Seconds that its `download` takes, two shards a process."""
    (folder / "urls.txt").write_text("\n".join(job.urls))
    (folder / "run.py").write_text(IMG2DATASET)
    options = {
        "url_list": str(folder / "urls.txt"),
        "output_folder": str(folder / "photos"),
        "output_format": "files",
        "image_size": job.size,
        "resize_mode": "keep_ratio_largest",
        "resize_only_if_bigger": True,
        "encode_quality": QUALITY,
        "processes_count": CORES,
        "thread_count": job.threads // CORES,
        "number_sample_per_shard": -(-job.count // (2 * CORES)),
        "timeout": 20,
    }
    command = [python, str(folder / "run.py"), json.dumps(options)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    stored = len(list((folder / "photos").rglob("*.jpg")))
    assert (told.returncode, stored) == (0, job.count), told.stderr[-2000:]
    return float(told.stdout.rpartition("SECONDS")[2])


def python_with_img2dataset(folder: str) -> str | None:
    """An interpreter that has it; None, with the reason printed, where it cannot be installed."""
    if importlib.util.find_spec("img2dataset"):
        return sys.executable
    venv.create(folder, with_pip=True)
    python = str(Path(folder) / "bin" / "python")
    done = subprocess.run(
        [python, "-m", "pip", "install", "-q", "img2dataset"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(f"img2dataset cannot be installed on this Python: {done.stderr[-2000:]}")
        return None
    return python


Contestant = Callable[[Job, Path], float]


def _timed(contestant: Contestant, job: Job, to: Connection) -> None:
    """Run one contestant in a folder of its own; the body of a process."""
    kinds = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    before = [resource.getrusage(kind) for kind in kinds]
    with tempfile.TemporaryDirectory() as folder:
        seconds = contestant(job, Path(folder))
    after = [resource.getrusage(kind) for kind in kinds]
    cpu_s = sum(
        now.ru_utime + now.ru_stime - then.ru_utime - then.ru_stime for now, then in zip(after, before, strict=True)
    )
    to.send(Cost(seconds, cpu_s, after[0].ru_maxrss / 1024))


def measure(contestant: Contestant, job: Job) -> Cost:
    """Measure one contestant in a fresh process."""
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_timed, args=(contestant, job, there))
    process.start()
    there.close()
    cost: Cost = here.recv()
    process.join()
    return cost


def race(contestants: dict[str, tuple[Contestant, Job]], rounds: int) -> None:
    """Print every contestant's rate and CPU time in each round, their medians and the ratios to ours."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, (contestant, job) in contestants.items():
            cost = measure(contestant, job)
            rates[name].append(job.count / cost.seconds)
            cpu_ms = 1000 * cost.cpu_s / job.count
            print(f"round {number + 1}, {name}: {rates[name][-1]:.0f}/s, {cpu_ms:.2f} ms CPU a photo", flush=True)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    for name, found in rates.items():
        ratio = medians["ours"] / medians[name]
        print(f"{name}: median {medians[name]:.0f}/s, {min(found):.0f} to {max(found):.0f}; ours is {ratio:.2f}x")


def memory(base: str, size: int, threads: int) -> None:
    """Print the stage's peak memory at both counts."""
    for count in (10_000, 100_000):
        cost = measure(ours, Job(base, count, size, threads))
        print(f"{count:,} URLs: peak {cost.peak_mib:.0f} MiB, {count / cost.seconds:.0f}/s", flush=True)


def main() -> None:
    """Read the command line and run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=3000, help="in a round; the serial loop gets a tenth")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=32, help="requests at a time")
    parser.add_argument("--delay-ms", type=float, default=20.0, help="before each answer")
    parser.add_argument("--sent", type=int, default=300, help="longest edge of the photo as sent, pixels")
    parser.add_argument("--size", type=int, default=128, help="longest edge as stored, pixels")
    parser.add_argument("--memory", action="store_true", help="peak memory at 10,000 and 100,000 URLs instead")
    chosen = parser.parse_args()
    with ExitStack() as stack:
        base = stack.enter_context(origin(chosen.sent, 0.0 if chosen.memory else chosen.delay_ms / 1000))
        if chosen.memory:
            memory(base, chosen.size, chosen.threads)
            return
        job = Job(base, chosen.photos, chosen.size, chosen.threads)
        contestants: dict[str, tuple[Contestant, Job]] = {
            "ours": (ours, job),
            "serial": (serial, job._replace(count=max(1, chosen.photos // 10))),
        }
        if python := python_with_img2dataset(stack.enter_context(tempfile.TemporaryDirectory())):
            contestants["img2dataset"] = (partial(img2dataset, python), job)
        race(contestants, chosen.rounds)
        print(
            f"{chosen.photos} photos of {chosen.sent} pixels to {chosen.size}, {chosen.threads} at a time, "
            f"{chosen.delay_ms:.0f} ms away"
        )


if __name__ == "__main__":
    main()
