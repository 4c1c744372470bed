"""Kinds of FAISS index over unit vectors, by inner product: creation, reading and recall.

The same version of FAISS on the same kind of processor creates each index identically, to the byte. So one thread fills
HNSW: several would add items in a random order
(https://github.com/facebookresearch/faiss/wiki/Threads-and-asynchronous-calls). Inverted files without re-ranking, with
product quantisation or 8 bits per number, miss far more items, and their scores are no cosines (benchmarks/index.py).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import gcd, log2
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pixrec_core.blas import faiss
from pixrec_core.errors import SettingsError
from pixrec_core.settings import IndexSettings

Vectors = NDArray[np.float32]

EXACT: Final = "flat"

HNSW_LINKS: Final = 32  # links per item on each level; the lowest level has twice as many
HNSW_EF_CONSTRUCTION: Final = 64
HNSW_EF_SEARCH: Final = 128  # FAISS uses the list's length where that is more

IVFPQ: Final = "ivfpq"
MIN_POINTS_PER_CENTROID: Final = 39  # FAISS warns of fewer
IVFPQ_MIN_ITEMS: Final = 256 * MIN_POINTS_PER_CENTROID  # one byte of a code has 256 centroids
IVFPQ_TRAINING_ITEMS: Final = 64  # training items per list
IVFPQ_KMEANS_ITERATIONS: Final = 10  # FAISS's 25 take longer and gain no recall
IVFPQ_DIMENSIONS_PER_BYTE: Final = 2  # where D is even
IVFPQ_PROBES: Final = 32  # lists that a search looks into
IVFPQ_CANDIDATES: Final = 8  # candidates per requested item, to be re-ranked by their full vectors

RECALL_AT: Final = 10


def choose_index_kind(settings: IndexSettings, items: int) -> str:
    """The kind of index for a catalogue.

    Raises:
        SettingsError: the catalogue is too small for the kind in the settings.
    """
    if settings.kind == IVFPQ and items < IVFPQ_MIN_ITEMS:
        raise SettingsError(
            f'index.kind is "ivfpq", which needs at least {IVFPQ_MIN_ITEMS:,} items to train its codes; the catalogue '
            f'has {items:,}: set index.kind to "auto"'
        )
    if settings.kind == "auto":
        return EXACT if items <= settings.exact_items else "hnsw"
    return settings.kind


def create_index(kind: str, vectors: Vectors) -> Any:
    """An index of one of `INDEX_KINDS` over unit vectors (N, D), in their order."""
    return INDEX_KINDS[kind](vectors)


def read_index(kind: str, path: Path) -> Any:
    """An index of one of `INDEX_KINDS` from its file. `ivfpq` is memory-mapped, the other kinds are read into memory.

    A mapped index keeps its file, also after another file has replaced it under the same name.
    """
    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if kind == IVFPQ else 0)


def measure_index_recall(
    index: Any, vectors: Vectors, queries: Vectors, query_items: NDArray[np.int64] | None = None
) -> float:
    """Share of the ten nearest items by exact search that the index finds, 0 to 1. Equally near items are equivalent.

    Args:
        index: over `vectors`.
        vectors: (N, D) of all items, unit length.
        queries: (B, D), unit length.
        query_items: (B,) rows of the items that are the queries, which do not count as their own neighbours.
    """
    excluded = 0 if query_items is None else 1
    k = min(RECALL_AT + excluded, len(vectors))
    exact, _ = faiss.knn(queries, vectors, k, faiss.METRIC_INNER_PRODUCT)
    _, rows = index.search(queries, k)
    cosines = np.einsum("qd,qkd->qk", queries, vectors[rows])
    cosines[rows < 0] = -np.inf
    if query_items is not None:
        cosines[rows == query_items[:, None]] = -np.inf
    found = np.minimum((cosines >= exact[:, -1:] - 1e-5).sum(axis=1), k - excluded)
    return float(found.mean() / (k - excluded)) if k > excluded else 1.0


def _create_flat(vectors: Vectors) -> Any:
    """Exact search over all vectors."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index


def _create_hnsw(vectors: Vectors) -> Any:
    """A graph of neighbours over the vectors: much faster search, more memory, minutes to build."""
    index = faiss.IndexHNSWFlat(vectors.shape[1], HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = HNSW_EF_CONSTRUCTION, HNSW_EF_SEARCH
    with _one_thread():
        index.add(vectors)
    return index


def _create_ivfpq(vectors: Vectors) -> Any:
    """Codes in inverted lists find candidates, the full vectors re-rank them; meant to be read from disk."""
    items, dimension = vectors.shape
    code = dimension // gcd(dimension, IVFPQ_DIMENSIONS_PER_BYTE)
    index: Any = faiss.index_factory(dimension, f"IVF{ivfpq_lists(items)},PQ{code}np,RFlat", faiss.METRIC_INNER_PRODUCT)
    codes: Any = faiss.downcast_index(index.base_index)
    codes.nprobe, index.k_factor = IVFPQ_PROBES, IVFPQ_CANDIDATES
    for clustering in (codes.cp, codes.pq.cp):
        clustering.niter, clustering.max_points_per_centroid = IVFPQ_KMEANS_ITERATIONS, IVFPQ_TRAINING_ITEMS
    size = min(IVFPQ_TRAINING_ITEMS * max(codes.nlist, 256), items)
    sample = np.random.default_rng(0).choice(items, size, replace=False)
    index.train(vectors[np.sort(sample)])
    index.add(vectors)
    return index


def ivfpq_lists(items: int) -> int:
    """Lists of an `ivfpq` index: the power of two nearest to 4 sqrt(N), or the largest that N items can train."""
    nearest, largest = round(log2(4 * items**0.5)), int(log2(items / MIN_POINTS_PER_CENTROID))
    return int(2 ** min(nearest, largest))


INDEX_KINDS: Final[Mapping[str, Callable[[Vectors], Any]]] = MappingProxyType(
    {EXACT: _create_flat, "hnsw": _create_hnsw, IVFPQ: _create_ivfpq}
)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
