"""Kinds of FAISS index over unit vectors, by inner product: how each is made, and what an approximate one misses.

Every one is made alike each time, to the byte, by the same version of FAISS on the same kind of processor.
So HNSW is filled by one thread: several would add in the order in which they happen to run
(https://github.com/facebookresearch/faiss/wiki/Threads-and-asynchronous-calls). Inverted files alone, with product
quantisation or with 8 bits a number, miss far more, and their scores are no cosines: benchmarks/index.py.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import gcd, log2
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from pixrec_core.errors import SettingsError
from pixrec_core.settings import IndexSettings

Vectors = NDArray[np.float32]

HNSW_LINKS: Final = 32  # of an item on each level; twice as many on the lowest
HNSW_BUILD: Final = 64  # candidates while linking
HNSW_SEARCH: Final = 128  # candidates while searching; FAISS takes the length of the list where that is more

IVFPQ: Final = "ivfpq"
POINTS: Final = 39  # items that a centre is learnt from, at least: FAISS warns of fewer
IVFPQ_LEAST: Final = 256 * POINTS  # items of a catalogue; a byte of a code has 256 centres
IVFPQ_SAMPLE: Final = 64  # items a list that lists and codes are learnt from
IVFPQ_ROUNDS: Final = 10  # of k-means; FAISS's 25 take longer and find no more
IVFPQ_NUMBERS: Final = 2  # of a vector that a byte of its code stands for, where D is even
IVFPQ_PROBES: Final = 32  # lists that are looked into
IVFPQ_CANDIDATES: Final = 8  # that codes find for each item wanted, to be put in order by their vectors

RECALL_AT: Final = 10
RECALL_ITEMS: Final = 1_000  # whose neighbours are looked up to measure recall; a standard error under half a point


def choose(settings: IndexSettings, items: int) -> str:
    """The kind of index for a catalogue.

    Raises:
        SettingsError: it has too few items for the kind that the settings name.
    """
    if settings.kind == IVFPQ and items < IVFPQ_LEAST:
        raise SettingsError(
            f'index.kind is "ivfpq", which learns its codes from {IVFPQ_LEAST:,} items or more; the catalogue has '
            f'{items:,}: set it to "auto"'
        )
    if settings.kind == "auto":
        return "flat" if items <= settings.exact_items else "hnsw"
    return settings.kind


def make(kind: str, vectors: Vectors) -> Any:
    """An index of one of `KINDS` over unit vectors (N, D), in their order."""
    return KINDS[kind](vectors)


def read(kind: str, path: Path) -> Any:
    """An index of one of `KINDS` from its file, in memory; `ivfpq` stays on disk, and what is asked for is mapped.

    What is mapped holds to the file that was there, also where another one takes its name.
    """
    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if kind == IVFPQ else 0)


def recall(index: Any, vectors: Vectors) -> float:
    """Share of the ten nearest neighbours of some items that the index finds, 0 to 1.

    An item itself does not count, as every index finds it. Where neighbours are equally near, any will do.
    """
    items = np.random.default_rng(0).choice(len(vectors), min(RECALL_ITEMS, len(vectors)), replace=False)
    queries, k = vectors[items], min(RECALL_AT + 1, len(vectors))
    best, _ = faiss.knn(queries, vectors, k, faiss.METRIC_INNER_PRODUCT)
    _, rows = index.search(queries, k)
    found = np.einsum("qd,qkd->qk", queries, vectors[rows])
    found[(rows < 0) | (rows == items[:, None])] = -np.inf
    near = np.minimum((found >= best[:, -1:] - 1e-5).sum(axis=1), k - 1)
    return float(1 - (k - 1 - near).sum() / max(len(items) * (k - 1), 1))


def _flat(vectors: Vectors) -> Any:
    """Every vector is looked at: exact."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index


def _hnsw(vectors: Vectors) -> Any:
    """A graph of neighbours beside the vectors: many times faster, more memory, minutes to build."""
    index = faiss.IndexHNSWFlat(vectors.shape[1], HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = HNSW_BUILD, HNSW_SEARCH
    with _one_thread():
        index.add(vectors)
    return index


def _ivfpq(vectors: Vectors) -> Any:
    """Lists of codes that find candidates, and all vectors to put these in order: on disk, once it is written."""
    items, dimension = vectors.shape
    code = dimension // gcd(dimension, IVFPQ_NUMBERS)
    index: Any = faiss.index_factory(dimension, f"IVF{ivfpq_lists(items)},PQ{code}np,RFlat", faiss.METRIC_INNER_PRODUCT)
    codes: Any = faiss.downcast_index(index.base_index)
    codes.nprobe, index.k_factor = IVFPQ_PROBES, IVFPQ_CANDIDATES
    for clustering in (codes.cp, codes.pq.cp):
        clustering.niter, clustering.max_points_per_centroid = IVFPQ_ROUNDS, IVFPQ_SAMPLE
    some = np.random.default_rng(0).choice(items, min(IVFPQ_SAMPLE * max(codes.nlist, 256), items), replace=False)
    index.train(vectors[np.sort(some)])
    index.add(vectors)
    return index


def ivfpq_lists(items: int) -> int:
    """Lists of an `ivfpq` index: the power of two nearest to 4 sqrt(N), or the largest that can be learnt from N."""
    wanted, most = round(log2(4 * items**0.5)), int(log2(items / POINTS))
    return int(2 ** min(wanted, most))


KINDS: Final[Mapping[str, Callable[[Vectors], Any]]] = MappingProxyType({"flat": _flat, "hnsw": _hnsw, IVFPQ: _ivfpq})


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
