"""Speed of exact ranking and evaluation, compared with a loop over users in numpy.

    python -m benchmarks.evaluation [--users 100000] [--items 100000] [--looped 500]

User and item vectors are random. The loop ranks and evaluates one user at a time, for the first `--looped` users. Both
rank the whole catalogue and keep 100 items. PixRec also writes the ranking as Parquet, reads and checks it, and
evaluates it under both protocols.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pixrec_core.evaluation import metrics
from pixrec_core.evaluation.rankings import coverage, listed_ranks, read_ranking, without_seen
from pixrec_core.evaluation.targets import Targets
from pixrec_core.ranking_table import to_ranking, write_ranking
from pixrec_core.retrieval import faiss_index
from pixrec_core.retrieval.index import ItemIndex, ListsRequest
from pixrec_core.schemas import CATALOGUE_SCHEMA

DEPTH, HISTORY, DIMENSION, BATCH = 100, 5, 128, 1024


def unit_vectors(rows: int, seed: int) -> faiss_index.Vectors:
    """Return random unit vectors (rows, DIMENSION)."""
    vectors = np.random.default_rng(seed).normal(size=(rows, DIMENSION)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def random_targets(users: int, items: int) -> tuple[Targets, Any]:
    """Return random histories as `Targets`, and the item index (users,) of each target."""
    bought = np.random.default_rng(2).integers(items, size=(users, HISTORY + 1))
    ids = pl.Series([f"item {n:08}" for n in range(items)])
    columns = {"item": ids, "has_image": [True] * items, "train_count": [1] * items}
    catalogue = pl.DataFrame({name: columns.get(name) for name in CATALOGUE_SCHEMA}, schema=CATALOGUE_SCHEMA)
    sequences = ids.gather(bought.ravel()).reshape((users, HISTORY + 1)).arr.to_list()
    names = [f"user {n:08}" for n in range(users)]
    return Targets.of(catalogue, pl.DataFrame({"user": names, "items": sequences, "tied": [False] * users})), bought[
        :, -1
    ]


def evaluate_in_loop(users: faiss_index.Vectors, items: faiss_index.Vectors, targets: Any) -> list[list[float]]:
    """Return the metrics of each user, computed one user at a time."""
    scored = []
    for vector, target in zip(users, targets, strict=True):
        scores = items @ vector
        best = np.argpartition(-scores, DEPTH)[:DEPTH]
        best = best[np.argsort(-scores[best])]
        position = np.flatnonzero(best == target)
        scored.append(metrics.per_user(np.array([position[0] + 1.0 if len(position) else np.inf]))[0].tolist())
    return scored


def timed(name: str, run: Callable[[], Any]) -> tuple[Any, float]:
    """Run, print the time and memory, and return the result and the seconds."""
    start, busy = time.perf_counter(), time.process_time()
    result = run()
    seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{name:24} {seconds:8.1f} s, {time.process_time() - busy:8.1f} s of CPU, peak {memory:,.0f} MiB",
        flush=True,
    )
    return result, seconds


def compare(users: int, items: int, looped: int) -> None:
    """Measure each step of PixRec, then the loop."""
    user_vectors, item_vectors, (targets, bought) = (
        unit_vectors(users, 0),
        unit_vectors(items, 1),
        random_targets(users, items),
    )
    ids = [str(item) for item in range(items)]
    index = ItemIndex(ids, faiss_index.create_index("flat", item_vectors), Path())
    lengths = DEPTH + targets.seen.group_by("user_index").len().sort("user_index")["len"].to_numpy().astype(np.int64)

    def frames() -> Iterator[pl.DataFrame]:
        for start in range(0, users, BATCH):
            part = slice(start, start + BATCH)
            request = ListsRequest(user_vectors[part], lengths[part], [], 0.0, np.arange(items))
            yield to_ranking(targets.users[part], targets.items, *index.nearest_lists(request))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ranking.parquet"
        _, ranked = timed("rank and write", lambda: write_ranking(path, frames()))
        ranking, read = timed("read and check", lambda: read_ranking(path, "random", targets, DEPTH))

    def score() -> Any:
        filtered = without_seen(ranking, targets)
        _ = listed_ranks(filtered, targets, DEPTH), coverage(filtered, targets, 10)
        return metrics.per_user(listed_ranks(ranking, targets, DEPTH)), coverage(ranking, targets, 10)

    (ours, _), scored = timed("score, both protocols", score)
    theirs, seconds = timed(
        f"loop, {looped} users", lambda: evaluate_in_loop(user_vectors[:looped], item_vectors, bought[:looped])
    )
    assert np.allclose(ours[:looped], theirs), "the two disagree"
    seconds_in_all = ranked + read + scored
    rate, loop_rate = users / seconds_in_all, looped / seconds
    print(f"{rate:,.0f} users/s against {loop_rate:,.0f}: {rate / loop_rate:.1f}x")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--looped", type=int, default=500, help="users that the loop evaluates")
    given = parser.parse_args()
    compare(given.users, given.items, given.looped)


if __name__ == "__main__":
    main()
