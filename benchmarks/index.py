"""Queries per second, recall, size and memory of each kind of index over a large catalogue, and of two rejected kinds.

    python -m benchmarks.index [--items 1000000] [--queries 2048] [--rounds 3] [--kinds flat hnsw ...]

The graphs of hnswlib and usearch, with the settings of our `hnsw`, take part if they are installed:

    pip install --no-deps --target /tmp/rivals hnswlib usearch numkong
    PYTHONPATH=/tmp/rivals python -m benchmarks.index

The vectors are synthetic, but not uniform: items belong to 2,000 products, of which few hold most items, and products
to 50 categories. Each level adds a normal offset to the one above (1, 0.7 and 0.5), whose j-th of 128 dimensions is
scaled by j ** -0.5, because trained vectors do not fill their space evenly. Queries have the same distribution and are
no items. Times are of batches of 1,024 queries for the 100 nearest items, as in the ranking stage, and the kinds take
turns. Recall is against the flat index. Each index is written and read again, as in serving; memory counts the pages
that the system cannot drop and read again (Linux only).
"""

import argparse
import importlib.util
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import psutil

from pixrec_core.retrieval import faiss_index

DIMENSION = 128
DEPTH = 100  # items of a list
BATCH = 1024  # queries at a time
CATEGORIES, PRODUCTS = 50, 2_000


def clustered(items: int, seed: int) -> faiss_index.Vectors:
    """Unit vectors (items, 128) of products in categories; every seed has the same products."""
    shared, random = np.random.default_rng(0), np.random.default_rng((1, seed))
    categories = shared.normal(size=(CATEGORIES, DIMENSION))
    products = categories[shared.integers(CATEGORIES, size=PRODUCTS)] + 0.7 * shared.normal(size=(PRODUCTS, DIMENSION))
    popularity = 1 / np.arange(1, PRODUCTS + 1)
    drawn = random.choice(PRODUCTS, size=items, p=popularity / popularity.sum())
    spread = np.arange(1, DIMENSION + 1) ** -0.5
    vectors = np.empty((items, DIMENSION), np.float32)
    for start in range(0, items, 100_000):
        some = products[drawn[start : start + 100_000]]
        block = (some + 0.5 * random.normal(size=some.shape)) * spread
        vectors[start : start + 100_000] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return vectors


def ivf(codes: str) -> Callable[[faiss_index.Vectors], Any]:
    """An inverted file of 4 sqrt(N) clusters, of which a search probes 64."""

    def create(vectors: faiss_index.Vectors) -> Any:
        clusters = 2 ** round(np.log2(4 * len(vectors) ** 0.5))
        index = faiss.index_factory(DIMENSION, f"IVF{clusters},{codes}", faiss.METRIC_INNER_PRODUCT)
        index.cp.max_points_per_centroid, index.cp.niter = 39, 10
        if isinstance(index, faiss.IndexIVFPQ):
            index.pq.cp.max_points_per_centroid, index.pq.cp.niter = 39, 10  # training 64 x 256 codes takes longest
        index.train(vectors)
        index.add(vectors)
        index.nprobe = 64
        return index

    return create


class Rival:
    """A graph of another library, built by one thread and searched by as many as FAISS uses."""

    def __init__(
        self, add: Callable[[faiss_index.Vectors], Any], find: Callable[[faiss_index.Vectors, int], Any]
    ) -> None:
        self.add, self.find = add, find

    def search(self, queries: faiss_index.Vectors, k: int) -> tuple[None, Any]:
        """The rows of the nearest vectors, in the form of FAISS."""
        return None, np.asarray(self.find(queries, k)).astype(np.int64)


def hnswlib_graph(vectors: faiss_index.Vectors) -> Rival:
    """The graph of hnswlib."""
    index = importlib.import_module("hnswlib").Index(space="ip", dim=DIMENSION)
    index.init_index(len(vectors), M=faiss_index.HNSW_LINKS, ef_construction=faiss_index.HNSW_EF_CONSTRUCTION)
    index.set_ef(faiss_index.HNSW_EF_SEARCH)
    index.add_items(vectors, num_threads=1)
    threads = faiss.omp_get_max_threads()
    return Rival(index.add_items, lambda queries, k: index.knn_query(queries, k, num_threads=threads)[0])


def usearch_graph(vectors: faiss_index.Vectors) -> Rival:
    """The graph of usearch."""
    index = importlib.import_module("usearch.index").Index(
        ndim=DIMENSION, metric="ip", dtype="f32", connectivity=faiss_index.HNSW_LINKS,
        expansion_add=faiss_index.HNSW_EF_CONSTRUCTION, expansion_search=faiss_index.HNSW_EF_SEARCH,
    )  # fmt: skip
    index.add(np.arange(len(vectors)), vectors, threads=1)
    threads = faiss.omp_get_max_threads()
    return Rival(index.add, lambda queries, k: index.search(queries, k, threads=threads).keys)


CONTENDERS: dict[str, Callable[[faiss_index.Vectors], Any]] = {
    **faiss_index.INDEX_KINDS,
    "IVF, PQ of 64 bytes": ivf("PQ64np"),
    "IVF, 8 bits per dimension": ivf("SQ8"),
}
RIVALS = {"hnswlib": hnswlib_graph, "usearch": usearch_graph}


def private_memory() -> int:
    """Bytes of this process's memory that belong to no file."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - memory.shared)


def memory_of_index(name: str, path: Path) -> int:
    """Bytes of memory that an index takes; to be called in a new process, which has no freed memory to reuse."""
    before = private_memory()
    index = faiss_index.read_index(name, path)
    assert index.ntotal
    return private_memory() - before


def write_and_read(index: Any, name: str, path: Path) -> tuple[Any, int, int]:
    """The index as serving reads it, its bytes on disk, and its bytes in memory."""
    faiss.write_index(index, str(path))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        memory = pool.submit(memory_of_index, name, path).result()
    return faiss_index.read_index(name, path), path.stat().st_size, memory


def search(index: Any, queries: faiss_index.Vectors) -> tuple[float, Any]:
    """Queries per second, and the rows found."""
    start = time.perf_counter()
    found = [index.search(queries[n : n + BATCH], DEPTH)[1] for n in range(0, len(queries), BATCH)]
    return len(queries) / (time.perf_counter() - start), np.concatenate(found)


def recall(found: Any, exact: Any, k: int) -> float:
    """Share of the exact first `k` among the first `k` found."""
    return statistics.mean(len({*a[:k]} & {*b[:k]}) / k for a, b in zip(found.tolist(), exact.tolist(), strict=True))


def compare(items: int, count: int, rounds: int, kinds: list[str], folder: Path) -> None:
    """Build each kind once, then search in turns."""
    vectors, queries = clustered(items, seed=0), clustered(count, seed=1)
    indices: dict[str, Any] = {}
    for name in kinds:
        create: Callable[[faiss_index.Vectors], Any] = {**CONTENDERS, **RIVALS}[name]
        start, busy = time.perf_counter(), time.process_time()
        index = create(vectors)
        wall, cpu = time.perf_counter() - start, time.process_time() - busy
        print(f"{name:20} built in {wall:6.0f} s ({cpu:.0f} s of CPU)", flush=True)
        indices[name] = index
        if name in CONTENDERS:
            indices[name], size, memory = write_and_read(index, name, folder / f"{len(indices)}.faiss")
            print(
                f"{name:20} {size / items:5.0f} bytes per vector on disk, {memory / items:5.0f} in memory", flush=True
            )
    rates: dict[str, list[float]] = {name: [] for name in indices}
    busy: dict[str, list[float]] = {name: [] for name in indices}
    found = {}
    for _ in range(rounds):
        for name, index in indices.items():
            start = time.process_time()
            rate, found[name] = search(index, queries)
            rates[name].append(rate)
            busy[name].append((time.process_time() - start) / count * 1000)
    for name, each in rates.items():
        hits = ", ".join(f"recall@{k} {recall(found[name], found['flat'], k):.3f}" for k in (10, DEPTH))
        print(
            f"{name:20} {statistics.median(each):8,.0f} queries/s ({min(each):,.0f} to {max(each):,.0f}), "
            f"{statistics.median(busy[name]):.2f} CPU ms per query, {hits}, "
            f"{statistics.median(each) / statistics.median(rates['flat']):6.1f}x flat"
        )


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=2_048)
    parser.add_argument("--rounds", type=int, default=3)
    installed = [name for name in RIVALS if importlib.util.find_spec(name)]
    known = [*CONTENDERS, *installed]
    parser.add_argument("--kinds", nargs="+", default=known, choices=known, help="with `flat`, the reference of recall")
    given = parser.parse_args()
    print(
        f"{given.items:,} items of {DIMENSION} dimensions, {faiss.omp_get_max_threads()} threads, {given.rounds} rounds"
    )
    with tempfile.TemporaryDirectory() as folder:
        compare(given.items, given.queries, given.rounds, given.kinds, Path(folder))


if __name__ == "__main__":
    main()
