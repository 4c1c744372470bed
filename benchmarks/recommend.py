"""Latency of one recommendation for each kind of query, with a loaded recommender and with one load per call.

    python -m benchmarks.recommend [--rounds 3] [--calls 100] [--shoppers 300]

The method that serves answers users and histories. The alternative is a stateless script: it loads the promoted folder
(checksums, models, catalogue, index) and then answers one query. Both answer the same queries in turns in one process,
with a checkpoint of one epoch on the sample dataset. Then the command `pixrec recommend`, from start to exit.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from benchmarks.generated_shop import INDEX_STAGES, open_shop
from pixrec_core import pipeline
from pixrec_core.data.sequences import read_sequences
from pixrec_core.schemas import HAS_IMAGE, ITEM, ITEMS, TEST, TITLE, USER
from pixrec_core.serving import Recommender
from pixrec_core.stages import Work

SERVING_STAGES = (pipeline.BASELINES, pipeline.BLEND, pipeline.PROMOTED)
LOADS = 3  # calls per round that load the recommender
TOML = '[datasets.sample]\nsource = { kind = "sample" }\n'
COMMAND = "from pixrec_assets.cli import main; main()"

Ask = Callable[[Recommender], object]


def queries(work: Work, recommender: Recommender) -> dict[str, list[Ask]]:
    """Queries by kind."""
    test = read_sequences(work.paths, TEST)
    photos = [work.paths.image(item).read_bytes() for item in recommender.catalogue.filter(HAS_IMAGE)[ITEM].head(50)]
    return {
        "user": [lambda r, u=user: r.for_user(u) for user in test[USER]],
        "items": [lambda r, h=history: r.for_items(h) for history in test[ITEMS].to_list()],
        "text": [lambda r, t=title: r.for_text(t) for title in recommender.catalogue[TITLE].drop_nulls()],
        "photo": [lambda r, p=photo: r.for_photo(p) for photo in photos],
    }


def seconds(ask: Callable[[], object]) -> float:
    """Duration of a call."""
    start = time.perf_counter()
    ask()
    return time.perf_counter() - start


def summary(times: list[float]) -> str:
    """Median and 95th percentile in milliseconds."""
    return f"{1000 * np.median(times):9.1f} ms median {1000 * np.quantile(times, 0.95):9.1f} ms p95"


def compare(work: Work, rounds: int, calls: int) -> None:
    """Time warm calls and calls that load, for each kind of query in turns."""
    folder = work.paths.promoted.root
    recommender = Recommender.load(folder)
    print(f"{recommender.promotion.method} serves {len(recommender.catalogue):,} items")
    by_kind = queries(work, recommender)
    warm: dict[str, list[float]] = {kind: [] for kind in by_kind}
    loading: dict[str, list[float]] = {kind: [] for kind in by_kind}
    for kind, each in by_kind.items():
        each[0](recommender)  # the first call includes one-time preparation
        turns = cycle(each)
        for _ in range(rounds):
            warm[kind] += [seconds(lambda ask=ask: ask(recommender)) for ask in islice(turns, calls)]
            loads = islice(turns, LOADS)
            loading[kind] += [seconds(lambda ask=ask: ask(Recommender.load(folder))) for ask in loads]
    for kind in by_kind:
        ratio = np.median(loading[kind]) / np.median(warm[kind])
        print(f"{kind:6} warm    {summary(warm[kind])}, {len(warm[kind])} calls")
        print(f"{kind:6} loading {summary(loading[kind])}, {len(loading[kind])} calls: {ratio:.0f}x")


def command(folder: Path, rounds: int) -> None:
    """Time the command from start to exit."""
    (folder / "pixrec.toml").write_text(TOML)
    arguments = ["--config", str(folder / "pixrec.toml"), "recommend", "sample", "--text", "cup"]
    environment = os.environ | {"PIXREC_DATA_DIR": str(folder)}

    def run() -> None:
        subprocess.run([sys.executable, "-c", COMMAND, *arguments], env=environment, stdout=subprocess.PIPE, check=True)

    times = [seconds(run) for _ in range(rounds)]
    print(f"pixrec recommend --text, start to exit: {np.median(times):.1f} s ({min(times):.1f} to {max(times):.1f})")


def main() -> None:
    """Parse the command line, build a dataset and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=100, help="warm calls of each kind per round")
    parser.add_argument("--shoppers", type=int, default=300, help="users of the sample dataset")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work = open_shop(folder, given.shoppers, (*INDEX_STAGES, pipeline.RANKING, *SERVING_STAGES))
        compare(work, given.rounds, given.calls)
        command(folder, given.rounds)


if __name__ == "__main__":
    main()
