"""Photos per second: the download stage, a plain serial loop and img2dataset over the same URLs.

    python -m benchmarks.images
    python -m benchmarks.images --memory

All download the same photos from one loopback server, which waits before each answer as a distant server would, and
decode, scale and store them as JPEG files of the same size and quality. PixRec and img2dataset (two processes) have the
same number of simultaneous requests. Server and contestants run in separate processes, the contestants in turns. CPU
time, which other work on the machine disturbs less than rates, includes the workers of img2dataset. If this Python has
no img2dataset, it is installed into a temporary environment.

With --memory: peak memory of the stage with 10,000 and with 100,000 URLs.
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
from pixrec_core.schemas import IMAGE_URL, ITEM, OTHER_IMAGE_URLS
from pixrec_core.settings import ImageSettings

CORES = 2


class Job(NamedTuple):
    """Download `count` URLs below `base`, scaled to at most `size` pixels, with `threads` simultaneous requests."""

    base: str
    count: int
    size: int
    threads: int

    @property
    def urls(self) -> list[str]:
        """All URLs. `ours` does not use this list, whose memory would count as the stage's."""
        return [f"{self.base}{number}" for number in range(self.count)]


class Cost(NamedTuple):
    """Measurements of a contestant."""

    seconds: float
    cpu_s: float
    peak_mib: float


def ours(job: Job, folder: Path) -> float:
    """Return the seconds of the stage `images`."""
    paths = DatasetPaths(folder)
    url = pl.format("{}{}", pl.lit(job.base), pl.int_range(job.count))
    pl.select(url.alias(ITEM), url.alias(IMAGE_URL), pl.lit([]).alias(OTHER_IMAGE_URLS)).lazy().sink_parquet(
        paths.items
    )
    entry = {"path": "unused", "bytes": 1, "sha256": ""}
    files.write_json(paths.raw_manifest, {"reviews": entry, "metadata": entry, "photos": None})
    settings = ImageSettings(size=job.size, threads=job.threads, per_host=job.threads, allow_private_hosts=True)
    start = time.perf_counter()
    stats = images.download_images(settings, paths)
    seconds = time.perf_counter() - start
    assert stats["ok"] == job.count, stats["failed_by_reason"]
    return seconds


def serial(job: Job, folder: Path) -> float:
    """Return the seconds of a serial loop: get, decode, scale, save."""
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
    """Return the seconds of `img2dataset.download`, with two shards per process."""
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
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    stored = len(list((folder / "photos").rglob("*.jpg")))
    assert (done.returncode, stored) == (0, job.count), done.stderr[-2000:]
    return float(done.stdout.rpartition("SECONDS")[2])


def python_with_img2dataset(folder: str) -> str | None:
    """Return a Python that has img2dataset; if it cannot be installed, print the reason and return None."""
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
    """Run one contestant in a temporary folder; the target of a process."""
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
    """Measure one contestant in a new process."""
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_timed, args=(contestant, job, there))
    process.start()
    there.close()
    cost: Cost = here.recv()
    process.join()
    return cost


def race(contestants: dict[str, tuple[Contestant, Job]], rounds: int) -> None:
    """Print the rate and CPU time of every contestant and round, the medians, and their ratios to ours."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, (contestant, job) in contestants.items():
            cost = measure(contestant, job)
            rates[name].append(job.count / cost.seconds)
            cpu_ms = 1000 * cost.cpu_s / job.count
            print(f"round {number + 1}, {name}: {rates[name][-1]:.0f}/s, {cpu_ms:.2f} ms CPU per photo", flush=True)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    for name, found in rates.items():
        ratio = medians["ours"] / medians[name]
        print(f"{name}: median {medians[name]:.0f}/s, {min(found):.0f} to {max(found):.0f}; ours is {ratio:.2f}x")


def memory(base: str, size: int, threads: int) -> None:
    """Print the peak memory of the stage for both numbers of URLs."""
    for count in (10_000, 100_000):
        cost = measure(ours, Job(base, count, size, threads))
        print(f"{count:,} URLs: peak {cost.peak_mib:.0f} MiB, {count / cost.seconds:.0f}/s", flush=True)


def main() -> None:
    """Parse the command line and run one of the two benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=3000, help="photos per round; the serial loop downloads a tenth")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=32, help="simultaneous requests")
    parser.add_argument("--delay-ms", type=float, default=20.0, help="delay of each answer")
    parser.add_argument("--sent", type=int, default=300, help="longest edge of the photo on the server, pixels")
    parser.add_argument("--size", type=int, default=128, help="longest edge of the stored photo, pixels")
    parser.add_argument("--img2dataset", metavar="PYTHON", help="a Python that has img2dataset, instead of a new one")
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead")
    args = parser.parse_args()
    with ExitStack() as stack:
        base = stack.enter_context(origin(args.sent, 0.0 if args.memory else args.delay_ms / 1000))
        if args.memory:
            memory(base, args.size, args.threads)
            return
        job = Job(base, args.photos, args.size, args.threads)
        contestants: dict[str, tuple[Contestant, Job]] = {
            "ours": (ours, job),
            "serial": (serial, job._replace(count=max(1, args.photos // 10))),
        }
        if python := args.img2dataset or python_with_img2dataset(stack.enter_context(tempfile.TemporaryDirectory())):
            contestants["img2dataset"] = (partial(img2dataset, python), job)
        race(contestants, args.rounds)
        print(
            f"{args.photos} photos of {args.sent} pixels to {args.size}, {args.threads} requests at a time, "
            f"{args.delay_ms:.0f} ms away"
        )


if __name__ == "__main__":
    main()
