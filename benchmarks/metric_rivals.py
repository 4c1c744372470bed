"""Recall@10, NDCG@10 and MRR of ten million ranking rows by PixRec, ranx and RePlay, in turns.

    python -m venv /tmp/rivals && /tmp/rivals/bin/pip install ranx replay-rec polars
    python -m benchmarks.metric_rivals --python /tmp/rivals/bin/python [--users 100000] [--rounds 3]

Each user has a list of 100 of 100,000 items and one target, which is in most lists. All start from the same columns in
memory: user, item and score or rank. CPU seconds include the library's own table (ranx: `Qrels` and `Run`), not the
import nor a first call on few users, in which ranx compiles its functions.
"""

import argparse
import importlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

DEPTH, ITEMS = 100, 100_000
LIBRARIES = ("pixrec", "ranx", "replay")


def make_columns(users: int) -> dict[str, Any]:
    """Return the rows sorted by user and rank, and one target per user."""
    random = np.random.default_rng(0)
    item = ((np.arange(DEPTH) * 977 + random.integers(ITEMS, size=(users, 1))) % ITEMS).astype(np.uint32)
    position = random.integers(2 * DEPTH, size=users)  # half of them in the list
    in_list = item[np.arange(users), np.minimum(position, DEPTH - 1)]
    target = np.where(position < DEPTH, in_list, (item[:, 0] + 1) % ITEMS).astype(np.uint32)
    user = np.repeat(np.arange(users, dtype=np.uint32), DEPTH)
    rank = np.tile(np.arange(1, DEPTH + 1, dtype=np.int32), users)
    return {"user": user, "item": item.ravel(), "rank": rank, "score": -rank.astype(np.float64), "target": target}


def pixrec(columns: dict[str, Any]) -> Callable[[], list[float]]:
    """Our metrics, as the stage `evaluation` computes them."""
    import polars as pl

    from pixrec_core.evaluation import metrics
    from pixrec_core.evaluation.rankings import listed_ranks
    from pixrec_core.evaluation.targets import ITEM_INDEX, USER_INDEX, Targets
    from pixrec_core.schemas import RANK

    ranking = pl.DataFrame({USER_INDEX: columns["user"], ITEM_INDEX: columns["item"], RANK: columns["rank"]})
    users = np.arange(len(columns["target"]), dtype=np.uint32)
    table = pl.DataFrame({USER_INDEX: users, ITEM_INDEX: columns["target"]})
    targets = Targets(table[USER_INDEX].cast(pl.String), table[ITEM_INDEX], table, table)

    def measure() -> list[float]:
        ranks = listed_ranks(ranking, targets, DEPTH)
        values = metrics.recall(ranks, 10), metrics.ndcg(ranks, 10), metrics.reciprocal_rank(ranks)
        return [float(each.mean()) for each in values]

    return measure


def ranx(columns: dict[str, Any]) -> Callable[[], list[float]]:
    """The metrics of ranx (Bassani 2022), compiled by Numba."""
    pd, library = importlib.import_module("pandas"), importlib.import_module("ranx")
    users = np.arange(len(columns["target"])).astype(str)
    run = pd.DataFrame({
        "q_id": users[columns["user"]], "doc_id": columns["item"].astype(str), "score": columns["score"],
    })  # fmt: skip
    qrels = pd.DataFrame({"q_id": users, "doc_id": columns["target"].astype(str), "score": 1})

    def measure() -> list[float]:
        tables = library.Qrels.from_df(qrels), library.Run.from_df(run)
        found = library.evaluate(*tables, ["recall@10", "ndcg@10", "mrr"])
        return [float(found[name]) for name in ("recall@10", "ndcg@10", "mrr")]

    return measure


def replay(columns: dict[str, Any]) -> Callable[[], list[float]]:
    """The metrics of RePlay over Polars."""
    pl, library = importlib.import_module("polars"), importlib.import_module("replay.metrics")
    names = {"query_column": "user", "item_column": "item"}
    ranking = pl.DataFrame({name: columns[name] for name in ("user", "item", "score")})
    truth = pl.DataFrame({"user": np.arange(len(columns["target"]), dtype=np.uint32), "item": columns["target"]})

    def measure() -> list[float]:
        wanted = [
            library.Recall(10, **names, rating_column="score"),
            library.NDCG(10, **names, rating_column="score"),
            library.MRR(DEPTH, **names, rating_column="score"),
        ]
        found = library.OfflineMetrics(wanted, **names, rating_column="score")(ranking, truth)
        return [float(found[name]) for name in ("Recall@10", "NDCG@10", f"MRR@{DEPTH}")]

    return measure


def measure_once(library: str, users: int) -> None:
    """Print the values and the CPU seconds of one library."""
    create = {"pixrec": pixrec, "ranx": ranx, "replay": replay}[library]
    create(make_columns(100))()
    measure, busy, start = create(make_columns(users)), time.process_time(), time.perf_counter()
    values = measure()
    print(time.process_time() - busy, time.perf_counter() - start, *values)


def main() -> None:
    """Parse the command line; run each library in a process of its own, in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="interpreter that has ranx and RePlay")
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--libraries", nargs="+", default=list(LIBRARIES), choices=LIBRARIES)
    parser.add_argument("--library", choices=LIBRARIES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.library:
        measure_once(given.library, given.users)
        return
    found: dict[str, list[list[float]]] = {library: [] for library in given.libraries}
    for _ in range(given.rounds):
        for library, rows in found.items():
            python = sys.executable if library == "pixrec" else given.python
            command = [python, str(Path(__file__)), "--library", library, "--users", str(given.users), "--python", ""]
            ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append([float(each) for each in ran.stdout.splitlines()[-1].split()])
    for library, rows in found.items():
        busy, wall = ([row[column] for row in rows] for column in (0, 1))
        values = ", ".join(f"{value:.6f}" for value in rows[0][2:])
        print(
            f"{library:8} {statistics.median(busy):7.2f} CPU s ({min(busy):.2f} to {max(busy):.2f}), "
            f"{statistics.median(wall):7.2f} s; Recall@10, NDCG@10, MRR {values}"
        )


if __name__ == "__main__":
    main()
