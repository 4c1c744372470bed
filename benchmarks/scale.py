"""Growth of each stage with its input: minutes, CPU minutes, peak memory and disk, each stage in a fresh process.

    python -m benchmarks.scale [--users 5000] [--factor 10] [--sizes 3] [--epochs N] [--engine ray] [--folder FOLDER]
    python -m benchmarks.scale --users 5400 --interactions 94 --items 0.65 --sizes 1 --up-to baselines

The shops are Parquet files of the source `tables`: users with ten purchases on average, and one item per five users;
`--interactions` and `--items` give other numbers per user. Each user likes a few clusters of items, an item's
popularity follows Zipf's law, one purchase in seven repeats an earlier one, and times are days. Texts and photos carry
the cluster; there are few photo files, which many items share. Settings are the defaults with one variant,
`multimodal`.

Prints every stage at every size, and the exponent by which its CPU time grows from the last size but one to the last: 1
is linear, 2 is quadratic. With `--folder`, shops stay, and stages that are current are not measured again.
"""

import argparse
import json
import logging
import math
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

from pixrec_core import pipeline
from pixrec_core.settings import Settings
from pixrec_core.stages import Work

ITEMS_PER_CLUSTER = 50
PHOTO_FILES = 500
DAYS = 730
SEED = 0
VARIANT = "multimodal"
STAGES = {stage.name: stage for stage in pipeline.STAGES if stage.partitioned_by != "joint"}


def write_shop(folder: Path, users: int, interactions: float, items: float) -> None:
    """Write orders.parquet, products.parquet and a folder of photos; so many interactions and items per user."""
    random, n_items = np.random.default_rng(SEED), int(users * items)
    clusters = random.integers(max(2, n_items // ITEMS_PER_CLUSTER), size=n_items)
    _write_products(folder, clusters, random)
    _write_orders(folder, users, interactions, clusters, random)


def _write_products(folder: Path, clusters: np.ndarray, random: np.random.Generator) -> None:
    """Write items with texts of 15 words, of which 5 are typical of the cluster and 2 of the item."""
    n, syllables = len(clusters), np.array([c + v for c in "bdfgklmnprstvz" for v in "aeiou"])
    words = np.array(["".join(syllables[random.integers(len(syllables), size=3)]) for _ in range(20_000)])
    typical = random.integers(len(words), size=(clusters.max() + 1, 12))
    own = typical[clusters[:, None], random.integers(12, size=(n, 5))]
    common = (random.pareto(1.2, (n, 8)) * 20).astype(np.int64) % len(words)
    texts = words[np.concatenate([own, common, random.integers(len(words), size=(n, 2))], axis=1)]
    photos = (clusters * 7 + random.integers(3, size=n)) % PHOTO_FILES
    products = pl.DataFrame(
        {
            "sku": pl.Series(range(n)).cast(pl.String).str.zfill(8),
            "name": [" ".join(row) for row in texts[:, [0, 5, 13, 1]]],
            "description": [" ".join(row) for row in texts],
            "department": pl.Series(clusters % 40).cast(pl.String),
            "price": np.round(random.lognormal(3, 1, n), 2),
            "photo": [f"{photo}.jpg" for photo in photos],
        }
    )
    products.write_parquet(folder / "products.parquet")
    (folder / "photos").mkdir()
    for number in range(PHOTO_FILES):
        pixels = random.integers(256, size=3) + random.integers(-40, 40, size=(96, 96, 1))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "photos" / f"{number}.jpg")


def _write_orders(
    folder: Path, users: int, interactions: float, clusters: np.ndarray, random: np.random.Generator
) -> None:
    """Write purchases: three clusters per user, and items of each by Zipf's law."""
    by_cluster, sizes = np.argsort(clusters, kind="stable"), np.bincount(clusters)
    starts = np.cumsum(sizes) - sizes
    zipf = 1 / (1 + np.arange(len(sizes)))
    liked = random.choice(len(sizes), (users, 3), p=zipf**0.6 / (zipf**0.6).sum())
    user = np.repeat(np.arange(users), 3 + random.poisson(interactions - 3, users))
    cluster = liked[user, random.choice(3, len(user), p=(0.6, 0.25, 0.15))]
    position = np.floor(sizes[cluster] ** random.random(len(user))).astype(np.int64) - 1  # density 1 / position
    item = by_cluster[starts[cluster] + position]
    first = np.searchsorted(user, user)
    earlier = first + (random.random(len(user)) * (np.arange(len(user)) - first)).astype(np.int64)
    item = np.where((random.random(len(user)) < 1 / 7) & (earlier < np.arange(len(user))), item[earlier], item)
    day = np.sort(random.integers(DAYS, size=len(user)) + user * DAYS) % DAYS
    orders = pl.DataFrame(
        {
            "customer": pl.Series(user).cast(pl.String).str.zfill(8),
            "sku": pl.Series(item).cast(pl.String).str.zfill(8),
            "ordered_at": pl.Series(day + 19_000, dtype=pl.Int32).cast(pl.Date),
        }
    )
    orders.write_parquet(folder / "orders.parquet")


def open_work(folder: Path, sections: dict[str, Any]) -> Work:
    """Return the settings of the shop in a folder."""
    source = {
        "kind": "tables",
        "interactions": folder / "orders.parquet",
        "items": folder / "products.parquet",
        "photos": folder / "photos",
        "interaction_columns": {"user": "customer", "item": "sku", "timestamp": "ordered_at"},
        "item_columns": {
            "item": "sku",
            "title": "name",
            "description": "description",
            "categories": "department",
            "price": "price",
            "image": "photo",
        },
    }
    given = sections | {"datasets": {"shop": {"source": source}}, "variants": (VARIANT,)}
    return Work(Settings(root=folder, data_dir=folder / "data", **given), "shop", VARIANT)


def run_stage(folder: Path, sections: dict[str, Any], name: str) -> None:
    """Run one stage in this process and print its measurements."""
    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("pixrec_core").setLevel(logging.INFO)
    stage, work = STAGES[name], open_work(folder, sections)
    stage_work = work if stage.partitioned_by == "variant" else work.with_variant(None)
    if stage.is_current(stage_work):
        print("{}", flush=True)
        return
    before, start = disk_bytes(folder / "data"), time.perf_counter()
    stage.materialise(stage_work)
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    children = usage[1].ru_maxrss / 1024
    measured = {
        "wall_min": (time.perf_counter() - start) / 60,
        "cpu_min": sum(each.ru_utime + each.ru_stime for each in usage) / 60,
        "memory_mib": max(children, peak_mib()),
        "disk_mb": (disk_bytes(folder / "data") - before) / 1e6,
    }
    print(json.dumps(measured), flush=True)


def peak_mib() -> float:
    """Return the peak memory of this process; `ru_maxrss` would have that of its parent too."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024


def disk_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder, 0 if it does not exist."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure_shop(folder: Path, sections: dict[str, Any], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the measurements of the named stages of one size; print each when it ends."""
    found = {}
    for name in names:
        given = ["--folder", str(folder), "--sections", json.dumps(sections), "--stage", name]
        run = [sys.executable, "-m", "benchmarks.scale", *given]
        found[name] = json.loads(subprocess.run(run, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
        print(f"{folder.name} users, {name}: {found[name]}", flush=True)
    return found


def print_table(found: dict[int, dict[str, dict[str, float]]]) -> None:
    """Print one line per stage: minutes, CPU minutes, MiB and MB of each size, and the exponent of the CPU time."""
    sizes = sorted(found)
    for name in found[sizes[0]]:
        rows = [found[users][name] for users in sizes]
        if not all(rows):
            continue
        cells = [
            f"{r['wall_min']:7.2f} min {r['cpu_min']:7.2f} cpu {r['memory_mib']:6,.0f} MiB {r['disk_mb']:7,.0f} MB"
            for r in rows
        ]
        exponent = ""
        if len(sizes) > 1:
            grown = math.log(rows[-1]["cpu_min"] / rows[-2]["cpu_min"]) / math.log(sizes[-1] / sizes[-2])
            exponent = f"   ^{grown:.2f}"
        print(f"{name:13} {' | '.join(cells)}{exponent}")


def main() -> None:
    """Measure all stages at all sizes, or run one stage in a process that this script started."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=5_000, help="of the smallest shop")
    parser.add_argument("--factor", type=int, default=10)
    parser.add_argument("--sizes", type=int, default=3)
    parser.add_argument("--interactions", type=float, default=10.0, help="per user")
    parser.add_argument("--items", type=float, default=0.2, help="per user")
    parser.add_argument("--up-to", default="refit", choices=STAGES, help="the last stage")
    parser.add_argument("--epochs", type=int, help="training.epochs; by default that of the settings")
    parser.add_argument("--engine", default="local", help="engine.kind, with two workers")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--sections", type=json.loads, help=argparse.SUPPRESS)
    given: Any = parser.parse_args()
    if given.stage:
        run_stage(given.folder, given.sections, given.stage)
        return
    sections: dict[str, Any] = {"engine": {"kind": given.engine, "workers": 2}}
    if given.epochs:
        sections["training"] = {"epochs": given.epochs}
    sizes = [given.users * given.factor**n for n in range(given.sizes)]
    print(f"{os.cpu_count()} cores; users: {', '.join(f'{n:,}' for n in sizes)}; items: {given.items} per user")
    with tempfile.TemporaryDirectory() as temporary:
        found, names = {}, [*STAGES]
        for users in sizes:
            folder = (given.folder or Path(temporary)).resolve() / str(users)
            if not (folder / "orders.parquet").exists():
                folder.mkdir(parents=True, exist_ok=True)
                write_shop(folder, users, given.interactions, given.items)
            found[users] = measure_shop(folder, sections, names[: names.index(given.up_to) + 1])
        print_table(found)


if __name__ == "__main__":
    main()
