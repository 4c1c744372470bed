"""The item index: a FAISS index, the ids of its items, and a manifest.

The manifest has the checksums of the index, its ids, its item vectors and their checkpoint. So loading detects damaged
files and files of another run.
"""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from pixrec_core import files
from pixrec_core.blas import faiss
from pixrec_core.data.sequences import read_sequences
from pixrec_core.errors import ArtefactError
from pixrec_core.models import checkpoint
from pixrec_core.paths import VariantPaths
from pixrec_core.retrieval import encode
from pixrec_core.retrieval.encode import Vectors
from pixrec_core.retrieval.faiss_index import (
    EXACT,
    RECALL_AT,
    choose_index_kind,
    create_index,
    measure_index_recall,
    read_index,
)
from pixrec_core.schemas import ITEMS, TEST, TIMESTAMPS, VALIDATION
from pixrec_core.settings import IndexSettings
from pixrec_core.stages import Stats

_log: Final = logging.getLogger(__name__)

INDEX = "index.faiss"
MANIFEST = "index.json"
RECALL_USERS: Final = 200  # 2,000 neighbours: a standard error of about half a point or less
RECALL_ITEMS: Final = 1_000
USUAL_RECALL: Final = 0.9  # of an approximate index
#: Items past the end of a list that are searched, for those that are as near as its last one: if 16 are too few, 1,000.
#: Of a larger group, as of a catalogue without texts, FAISS chooses which end the list: all would take gigabytes.
TIES: Final = (16, 1_000)


class IndexManifest(BaseModel):
    """Kind, size and origin of an index."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    items: int
    dimension: int
    sha256: str
    items_sha256: str
    vectors_sha256: str
    checkpoint_sha256: str


class ListsRequest(NamedTuple):
    """Lists that `ItemIndex.nearest_lists` fills.

    Attributes:
        queries: (B, D) unit vectors.
        lengths: (B,) of the lists; no list exceeds the catalogue.
        seen: B lists of the items that a user has.
        seen_offset: added to the cosines of these items, 0 or less.
        popularity_ranks: (N,) from `ranking_table.popularity_ranks`; orders equal scores.
    """

    queries: Vectors
    lengths: NDArray[np.int64]
    seen: Sequence[Sequence[int]]
    seen_offset: float
    popularity_ranks: NDArray[np.int64]


@dataclass(frozen=True)
class ItemIndex:
    """A loaded index.

    Attributes:
        items: ids, in the order of the index.
        searcher: the FAISS index.
        vectors_folder: item vectors that the index was built from.
    """

    items: list[str]
    searcher: Any
    vectors_folder: Path

    def nearest(self, queries: Vectors, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows of the nearest items, nearest first, and their cosines, both (B, k).

        Exact search answers the queries for which an approximate index finds fewer than `k` items.

        Args:
            queries: (B, D), unit vectors.
            k: number of items, at most the size of the catalogue.
        """
        cosines, rows = self.searcher.search(queries, k)
        short = (rows < 0).any(axis=1)
        if short.any():
            exact = faiss.knn(queries[short], self.vectors, k, faiss.METRIC_INNER_PRODUCT)
            cosines[short], rows[short] = exact
        return rows, cosines

    def nearest_in_order(
        self, queries: Vectors, k: int, popularity_ranks: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """`nearest`, with equally near items in the order of `popularity_ranks` (N,); FAISS has an order of its own.

        See `TIES` for how many.
        """
        rows, cosines = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
        left = np.arange(len(queries))
        for ties in TIES:
            found, scores = self.nearest(queries[left], min(k + ties, len(self.items)))
            rows[left], cosines[left] = _order_lists(found, scores, popularity_ranks, k)
            left = left[scores[:, -1] == scores[:, k - 1]] if scores.shape[1] < len(self.items) else left[:0]
            if not len(left):
                break
        return rows, cosines

    def nearest_lists(self, request: ListsRequest) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """`nearest_in_order` for lists of different lengths, with an offset for seen items.

        Returns:
            Both (B, k); row -1 pads shorter lists.
        """
        queries, lengths, seen, offset, popularity_ranks = request
        k, n = min(int(lengths.max()), len(self.items)), len(self.items)
        # An offset below zero moves at most all seen items of a list behind others.
        more = max(len(set(items)) for items in seen) if offset else 0
        rows, scores = self.nearest_in_order(queries, min(k + more, n), popularity_ranks)
        if offset:
            seen_keys = np.concatenate([row * n + np.asarray(items, np.int64) for row, items in enumerate(seen)])
            keys = np.arange(len(rows))[:, None] * n + rows
            scores = np.where(np.isin(keys, seen_keys), scores + np.float32(offset), scores)
            rows, scores = _order_lists(rows, scores, popularity_ranks, k)
        return np.where(np.arange(k) < lengths[:, None], rows, -1), scores

    def __getstate__(self) -> dict[str, Any]:
        """Includes the number of threads, on which the last bits of a product depend."""
        return {**self.__dict__, "threads": faiss.omp_get_max_threads()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        faiss.omp_set_num_threads(state.pop("threads"))
        self.__dict__.update(state)

    @cached_property
    def vectors(self) -> Vectors:
        """Of all items, (N, D), memory-mapped."""
        return encode.read_item_vectors(self.vectors_folder)[1]


def _order_lists(
    rows: NDArray[np.int64], scores: NDArray[np.float32], popularity_ranks: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the k best items of each list and their scores, both (B, k), equal scores by `popularity_ranks` (N,)."""
    order = np.lexsort((popularity_ranks[rows], -scores))[:, :k]
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)


def build_index(settings: IndexSettings, paths: VariantPaths) -> Stats:
    """Write the index and its manifest.

    Returns:
        The manifest; `recall@10`, the share of exact search's ten nearest items that the index finds; and
        `recall_queries`, the vectors that this was measured with.

    Raises:
        MissingArtefactError: there are no item vectors.
        ArtefactError: the item vectors are damaged.
        SettingsError: the catalogue is too small for the kind of index in the settings.
    """
    items, vectors = encode.read_item_vectors(paths.item_vectors)
    kind = choose_index_kind(settings, len(items))
    index = create_index(kind, vectors)
    with files.replacing(paths.item_index) as folder:
        folder.mkdir()
        with (folder / INDEX).open("wb") as file:  # with a path, FAISS ignores errors of a full disk
            faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
        shutil.copyfile(paths.item_vectors / encode.ITEMS, folder / encode.ITEMS)
        manifest = IndexManifest(
            kind=kind,
            items=index.ntotal,
            dimension=index.d,
            sha256=files.sha256_file(folder / INDEX),
            items_sha256=files.sha256_file(folder / encode.ITEMS),
            vectors_sha256=files.sha256_file(paths.item_vectors / encode.VECTORS),
            checkpoint_sha256=encode.read_checkpoint_sha256(paths.item_vectors),
        ).model_dump()
        files.write_json(folder / MANIFEST, manifest)
        size = (folder / INDEX).stat().st_size
    stats = _recall_stats(kind, index, vectors, paths)
    if (recall := stats[f"recall@{RECALL_AT}"]) < USUAL_RECALL:
        _log.warning(
            "warning: the index finds %.3g %% of the ten nearest items of exact search (%.0f %% or more is usual), "
            "measured with %s. Many items with the same vector are a usual cause. Set index.kind to `%s`: it is exact",
            100 * recall, 100 * USUAL_RECALL, stats["recall_queries"], EXACT,
        )  # fmt: skip
    return {**manifest, "index_bytes": size, **stats}


def _recall_stats(kind: str, index: Any, vectors: Vectors, paths: VariantPaths) -> Stats:
    """Recall against exact search, with user vectors as queries, as in serving.

    Item vectors are easier queries, because they lie where the index is dense. They are used only without users.
    """
    if kind == EXACT:
        return {f"recall@{RECALL_AT}": 1.0, "recall_queries": "none, the search is exact"}
    for split in (VALIDATION, TEST) if paths.dataset.sequences.exists() else ():
        sequences = read_sequences(paths.dataset, split)
        if len(sequences):
            sequences = sequences.sample(min(RECALL_USERS, len(sequences)), seed=0)
            encoder, _ = encode.load_encoder(paths)
            histories = [each[:-1] for each in encoder.numbers(sequences[ITEMS]).to_list()]
            times = [each[:-1] for each in sequences[TIMESTAMPS].to_list()]
            recall = measure_index_recall(index, vectors, encoder.user_vectors(histories, times=times))
            return {f"recall@{RECALL_AT}": recall, "recall_queries": f"{len(histories):,} {split} users"}
    rows = np.random.default_rng(0).choice(len(vectors), min(RECALL_ITEMS, len(vectors)), replace=False)
    recall = measure_index_recall(index, vectors, vectors[rows], rows)
    return {f"recall@{RECALL_AT}": recall, "recall_queries": f"{len(rows):,} items"}


def load_index(paths: VariantPaths) -> ItemIndex:
    """Read the index, provided that it is undamaged and belongs to the variant's checkpoint and vectors.

    Raises:
        MissingArtefactError: the index, or an artefact that it was built from, is missing.
        ArtefactError: it is damaged, or belongs to other item vectors or to another checkpoint.
    """
    manifest = _read_manifest(paths.item_index / MANIFEST)
    _check_sha256(paths.item_index / INDEX, manifest.sha256, "is damaged")
    _check_sha256(paths.item_index / encode.ITEMS, manifest.items_sha256, "is damaged")
    _check_sha256(paths.item_vectors / encode.VECTORS, manifest.vectors_sha256, "is not what the index was built from")
    if checkpoint.weights_sha256(paths.checkpoint) != manifest.checkpoint_sha256:
        raise ArtefactError(
            f"{paths.item_index / INDEX} was built for another checkpoint than {paths.checkpoint}; "
            "run the stages `item_vectors` and `item_index` with --force"
        )
    items, path = encode.read_item_ids(paths.item_index), paths.item_index / INDEX
    try:
        searcher = read_index(manifest.kind, path)
    except (RuntimeError, MemoryError) as error:
        raise ArtefactError(f"{path} is damaged ({error}); run the stage `item_index` with --force") from error
    return ItemIndex(items, searcher, paths.item_vectors)


def _read_manifest(path: Path) -> IndexManifest:
    try:
        return IndexManifest.model_validate_json(files.require(path).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "as a whole"
        raise ArtefactError(
            f"{path} is damaged ({field}: {first['msg']}); run the stage `item_index` with --force"
        ) from None


def _check_sha256(path: Path, sha256: str, fault: str) -> None:
    if files.sha256_file(files.require(path)) != sha256:
        raise ArtefactError(f"{path} {fault}: its checksum differs; run the stage `item_index` with --force")
