"""The HTTP server under load on loopback: requests a second, latency and memory, with one and two processes.

    python -m benchmarks.serve [--items 10000] [--users 4000] [--requests 3000] [--clients 8] [--soak 100000]

It builds a shop of generated orders and texts without photos, promotes a blend of a dual tower and baselines, and
starts `pixrec serve` as a process. Latency depends on the sizes of catalogue and models and not on their quality, so
every method is fitted with one setting and one epoch. Clients keep their connections and each sends its next request
when it has the answer to the last one. They run in this process and take a part of the machine; the CPU time of the
server for a request does not depend on that.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from unittest import mock

import numpy as np
import polars as pl
import psutil

from pixrec_core import pipeline, recommenders
from pixrec_core.recommenders import _blend_training, ease
from pixrec_core.settings import load_settings
from pixrec_core.stages import StageInputs, Work

DATASET: Final = "shop"
CATEGORIES: Final = 50
BASELINES: Final = ("bm25_text", "co_occurrence", "ease", "markov_chain", "popularity", "recent_popularity")
STAGES: Final = (
    pipeline.ITEM_VECTORS, pipeline.ITEM_INDEX, pipeline.RANKING, pipeline.BASELINES, pipeline.BLEND, pipeline.PROMOTED,
)  # fmt: skip
TOML: Final = """
variants = ["text_only"]
[training]
epochs = 1
[datasets.shop.source]
kind = "tables"
interactions = "orders.csv"
items = "products.csv"
[datasets.shop.source.interaction_columns]
user = "customer"
item = "sku"
timestamp = "time"
[datasets.shop.source.item_columns]
item = "sku"
title = "name"
price = "price"
store = "brand"
categories = "category"
"""
SERVE: Final = [sys.executable, "-c", "from pixrec_assets.cli import main; main()", "serve", DATASET, "--port", "0"]
RULES: Final = {
    "filter_seen": True, "deny_categories": ["category 7"], "min_price": 5, "max_price": 60, "max_per_brand": 2,
    "max_per_category": 3,
}  # fmt: skip


def write_tables(folder: Path, n_items: int, n_users: int) -> None:
    """Write products, and orders of 3 to 20 items per customer: popular ones by a power law, half of one category."""
    random = np.random.default_rng(0)
    numbers = np.arange(n_items)
    pl.DataFrame(
        {
            "sku": [f"i{n:06}" for n in numbers],
            "name": [f"thing {n % 997} colour {n % 31} size {n % 7} of kind {n % CATEGORIES}" for n in numbers],
            "price": numbers % 97 + 0.5,
            "brand": [f"brand {n % 211}" for n in numbers],
            "category": [f"category {n % CATEGORIES}" for n in numbers],
        }
    ).write_csv(folder / "products.csv")
    popularity = 1 / (1 + numbers) ** 0.7
    lengths = random.integers(3, 21, n_users)
    users = np.repeat(np.arange(n_users), lengths)
    items = random.choice(n_items, len(users), p=popularity / popularity.sum())
    favourite = random.integers(CATEGORIES, size=n_users)[users]
    moved = items - items % CATEGORIES + favourite
    items = np.where((random.random(len(users)) < 0.5) & (moved < n_items), moved, items)
    days = 20_000 + np.arange(len(users)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    pl.DataFrame(
        {"customer": [f"u{user:06}" for user in users], "sku": [f"i{item:06}" for item in items], "time": days * 86_400}
    ).write_csv(folder / "orders.csv")


def build(folder: Path, n_items: int, n_users: int) -> None:
    """Build and promote a blend that keeps all its methods."""
    (folder / "pixrec.toml").write_text(TOML)
    write_tables(folder, n_items, n_users)
    with mock.patch.dict(os.environ, {"PIXREC_CONFIG": str(folder / "pixrec.toml")}):
        work = Work(load_settings(), DATASET, "text_only")
    with (
        mock.patch.object(recommenders, "baseline_names", return_value=list(BASELINES)),
        mock.patch.object(ease, "PENALTIES", (250.0,)),
        mock.patch.object(_blend_training, "MIN_GAIN", np.inf),  # nothing is dropped
    ):
        for stage in pipeline.DATA:
            stage.materialise(work)
        pipeline.CHECKPOINT.run(work, StageInputs("benchmark", {}))
        for stage in STAGES:
            stage.run(work)


@contextlib.contextmanager
def serving(folder: Path, workers: int) -> Iterator[tuple[int, psutil.Process]]:
    """Start the server; yield its port and process."""
    process = subprocess.Popen(
        [*SERVE, "--workers", str(workers)], cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        port, started = 0, 0
        for line in process.stdout:
            if found := re.search(r"running on http://\S+:(\d+)", line):
                port = int(found[1])
            started += "startup complete" in line
            if port and started == workers:
                break
        else:
            raise SystemExit("the server ended")
        yield port, psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


async def ask(port: int, requests: Iterator[bytes], seconds: list[float]) -> None:
    """Send requests on one connection until there are no more; append the duration of each."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for request in requests:
        start = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        found = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        assert found, head
        body = await reader.readexactly(int(found[1]))
        assert head.startswith(b"HTTP/1.1 200"), (head, body[:500])
        seconds.append(time.perf_counter() - start)
    writer.close()
    await writer.wait_closed()


def load(port: int, bodies: Sequence[Mapping[str, Any]], clients: int) -> tuple[float, list[float]]:
    """Send all bodies from some clients at once; return requests a second and the duration of each."""
    shared, seconds = (to_request(body) for body in bodies), list[float]()

    async def run() -> None:
        await asyncio.gather(*(ask(port, shared, seconds) for _ in range(clients)))

    start = time.perf_counter()
    asyncio.run(run())
    return len(bodies) / (time.perf_counter() - start), seconds


def to_request(body: Mapping[str, Any]) -> bytes:
    """A POST request to `recommend`."""
    content = json.dumps(body).encode()
    head = f"POST /datasets/{DATASET}/recommend HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def memory(process: psutil.Process) -> float:
    """Resident MiB of the server and the processes that it started."""
    return sum(each.memory_info().rss for each in (process, *process.children(recursive=True))) / 2**20


def cpu_seconds(process: psutil.Process) -> float:
    """CPU time of the server and the processes that it started."""
    times = (each.cpu_times() for each in (process, *process.children(recursive=True)))
    return sum(each.user + each.system for each in times)


def describe(rate: float, seconds: Sequence[float]) -> str:
    """Requests a second and percentiles of the latency."""
    p50, p95, p99 = 1000 * np.quantile(seconds, [0.5, 0.95, 0.99])
    return f"{rate:7,.0f} requests/s, {p50:6.1f} ms p50, {p95:6.1f} ms p95, {p99:6.1f} ms p99"


def main() -> None:
    """Build the shop, and load the server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--users", type=int, default=4_000)
    parser.add_argument("--requests", type=int, default=3_000, help="of each measurement")
    parser.add_argument("--clients", type=int, default=8, help="connections at a time")
    parser.add_argument("--soak", type=int, default=0, help="further requests to one process, whose memory is printed")
    parser.add_argument("--folder", type=Path, help="keep the shop here and use it again; by default a temporary one")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pixrec-serve-")))
        if not (folder / "data").exists():
            folder.mkdir(parents=True, exist_ok=True)
            start = time.process_time()
            build(folder, args.items, args.users)
            print(f"built in {time.process_time() - start:.0f} CPU seconds", flush=True)
        measure(folder, args)


def measure(folder: Path, args: argparse.Namespace) -> None:
    """Print all measurements."""
    random = np.random.default_rng(1)

    def by_user(**fields: Any) -> Callable[[int], list[dict[str, Any]]]:
        return lambda count: [
            {"user": f"u{user:06}", "top": 10, **fields} for user in random.integers(args.users, size=count)
        ]

    kinds = {
        "blend": by_user(),
        "blend, rules": by_user(rules=RULES),
        "text_only": by_user(method="text_only"),
        "co_occurrence": by_user(method="co_occurrence"),
        "by text": lambda count: [{"text": f"thing {n} colour {n % 31}"} for n in random.integers(997, size=count)],
    }
    for workers in (1, 2):
        with serving(folder, workers) as (port, process):
            for name, bodies in kinds.items():
                load(port, bodies(20 * args.clients), args.clients)  # loads the method in each process
                for clients in (1, args.clients):
                    count, before = args.requests if clients > 1 else args.requests // 10, cpu_seconds(process)
                    result = describe(*load(port, bodies(count), clients))
                    cpu = 1000 * (cpu_seconds(process) - before) / count
                    label = f"{workers} processes, {name:14} {clients:2} clients"
                    print(f"{label}: {result}, {cpu:5.1f} ms CPU of the server", flush=True)
            print(f"{workers} processes: {memory(process):,.0f} MiB", flush=True)
    if args.soak:
        with serving(folder, 1) as (port, process):
            soak(port, process, kinds, args)


def soak(
    port: int, process: psutil.Process, kinds: Mapping[str, Callable[[int], Any]], args: argparse.Namespace
) -> None:
    """Print the memory of one process while it answers requests of all kinds; the slow ones are few."""
    for part in range(11):
        if part:
            few = args.soak // 10 // 40
            counts = {name: few if name.startswith("blend") else (args.soak // 10 - 2 * few) // 3 for name in kinds}
            for name, bodies in kinds.items():
                load(port, bodies(counts[name]), args.clients)
        print(f"{part * args.soak // 10:8,} requests: {memory(process):,.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
