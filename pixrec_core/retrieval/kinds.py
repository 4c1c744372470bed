"""Kinds of FAISS index over unit vectors, by inner product: how each is made, and what an approximate one misses.

Every one is made alike each time, to the byte, by the same version of FAISS on the same kind of processor:
its k-means has a fixed seed, and HNSW is filled by one thread, since several add in the order in which they
happen to run (https://github.com/facebookresearch/faiss/wiki/Threads-and-asynchronous-calls).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from pixrec_core.errors import SettingsError
from pixrec_core.settings import IndexSettings

Vectors = NDArray[np.float32]

# Chosen by benchmarks/index.py.
HNSW_LINKS: Final = 32  # of an item on each level; twice as many on the lowest
HNSW_BUILD: Final = 64  # candidates while linking
HNSW_SEARCH: Final = 128  # candidates while searching; FAISS takes the length of the list where that is more
IVF_PROBED: Final = 64  # clusters that a query looks into
IVF_SMALLEST: Final = 10_000  # items: FAISS wants 39 for each of the 256 codes of a product quantiser

RECALL_AT: Final = 10
RECALL_ITEMS: Final = 1_000  # whose neighbours are looked up to measure recall; a standard error under half a point


def choose(settings: IndexSettings, items: int) -> str:
    """The kind of index for a catalogue.

    Raises:
        SettingsError: the catalogue is too small for the kind that the settings name.
    """
    if settings.kind == "ivf_pq" and items < IVF_SMALLEST:
        raise SettingsError(
            f"index.kind is 'ivf_pq', which needs {IVF_SMALLEST:,} items to learn its codes from, and the catalogue "
            f"has {items:,}; set it to 'auto', 'flat' or 'hnsw'"
        )
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
    exact, _ = faiss.knn(queries, vectors, k, faiss.METRIC_INNER_PRODUCT)
    _, rows = index.search(queries, k)
    found = np.einsum("qd,qkd->qk", queries, vectors[rows])
    found[(rows < 0) | (rows == items[:, None])] = -np.inf
    near = np.minimum((found >= exact[:, -1:] - 1e-5).sum(axis=1), k - 1)
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


def _ivf_pq(vectors: Vectors) -> Any:
    """Codes of a byte for two numbers, in clusters: an eighth of the memory."""
    items, dimension = vectors.shape
    clusters = 2 ** round(np.log2(4 * items**0.5))
    codes = next(n for n in range(max(dimension // 2, 1), 0, -1) if dimension % n == 0)
    index = faiss.index_factory(dimension, f"IVF{clusters},PQ{codes}", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    index.nprobe = min(IVF_PROBED, clusters)
    return index


KINDS: Final[Mapping[str, Callable[[Vectors], Any]]] = MappingProxyType(
    {"flat": _flat, "hnsw": _hnsw, "ivf_pq": _ivf_pq}
)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
