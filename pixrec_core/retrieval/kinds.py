"""Kinds of FAISS index over unit vectors, by inner product: how each is made, and what an approximate one misses.

Every one is made alike each time, to the byte, by the same version of FAISS on the same kind of processor.
So HNSW is filled by one thread: several would add in the order in which they happen to run
(https://github.com/facebookresearch/faiss/wiki/Threads-and-asynchronous-calls). Inverted files, with product
quantisation or with 8 bits a number, are smaller and miss far more: benchmarks/index.py.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from pixrec_core.settings import IndexSettings

Vectors = NDArray[np.float32]

HNSW_LINKS: Final = 32  # of an item on each level; twice as many on the lowest
HNSW_BUILD: Final = 64  # candidates while linking
HNSW_SEARCH: Final = 128  # candidates while searching; FAISS takes the length of the list where that is more

RECALL_AT: Final = 10
RECALL_ITEMS: Final = 1_000  # whose neighbours are looked up to measure recall; a standard error under half a point


def choose(settings: IndexSettings, items: int) -> str:
    """The kind of index for a catalogue."""
    if settings.kind == "auto":
        return "flat" if items <= settings.exact_items else "hnsw"
    return settings.kind


def make(kind: str, vectors: Vectors) -> Any:
    """An index of one of `KINDS` over unit vectors (N, D), in their order."""
    return KINDS[kind](vectors)


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


KINDS: Final[Mapping[str, Callable[[Vectors], Any]]] = MappingProxyType({"flat": _flat, "hnsw": _hnsw})


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
