"""FAISS index over item vectors, with what is needed to use it and to tell a damaged or foreign one.

The folder holds the index, the items' ids in its order, and a manifest that names the checksums of
both, of the vectors that it was built from, and of the checkpoint that they came from.
"""

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from pixrec_core import files
from pixrec_core.errors import ArtefactError
from pixrec_core.models import checkpoint
from pixrec_core.paths import VariantPaths
from pixrec_core.retrieval import encode, kinds
from pixrec_core.settings import IndexSettings
from pixrec_core.stages import Stats

INDEX = "index.faiss"
MANIFEST = "index.json"


class Manifest(BaseModel):
    """What an index is and what it was built from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    items: int
    dimension: int
    sha256: str
    items_sha256: str
    vectors_sha256: str
    checkpoint_sha256: str


@dataclass(frozen=True)
class ItemIndex:
    """An index that has been read.

    Attributes:
        items: ids, in the index's order.
        searcher: of FAISS.
        vectors_folder: where the vectors lie that it was built from.
    """

    items: list[str]
    searcher: Any
    vectors_folder: Path

    def nearest(self, queries: encode.Vectors, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows of the nearest items, nearest first, and their cosines, both (B, k).

        Where an approximate index finds fewer than `k` items, the query is answered by exact search instead.

        Args:
            queries: (B, D), unit vectors.
            k: items wanted, no more than there are.
        """
        cosines, rows = self.searcher.search(queries, k)
        short = (rows < 0).any(axis=1)
        if short.any():
            exact = faiss.knn(queries[short], self.vectors, k, faiss.METRIC_INNER_PRODUCT)
            cosines[short], rows[short] = exact
        return rows, cosines

    def lists(self, wanted: tuple[encode.Vectors, NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """`nearest` for lists of different lengths.

        Args:
            wanted: (B, D) unit vectors, and (B,) items wanted for each of them; where there are fewer, all of them.

        Returns:
            Both (B, k); places past a list's length hold row -1.
        """
        queries, lengths = wanted
        k = min(int(lengths.max()), len(self.items))
        rows, cosines = self.nearest(queries, k)
        return np.where(np.arange(k) < lengths[:, None], rows, -1), cosines

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which is to search with as many threads: the last bits of a product depend on them."""
        return {**self.__dict__, "threads": faiss.omp_get_max_threads()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        faiss.omp_set_num_threads(state.pop("threads"))
        self.__dict__.update(state)

    @cached_property
    def vectors(self) -> encode.Vectors:
        """Of all items, (N, D), on disk and mapped."""
        return encode.read_item_vectors(self.vectors_folder)[1]


def build(settings: IndexSettings, paths: VariantPaths) -> Stats:
    """Write the index and return its manifest, with the recall that was measured against exact search.

    Raises:
        MissingArtefactError: no item vectors.
        ArtefactError: they are damaged.
        SettingsError: they are too few for the kind of index that the settings name.
    """
    items, vectors = encode.read_item_vectors(paths.item_vectors)
    kind = kinds.choose(settings, len(items))
    index = kinds.make(kind, vectors)
    with files.replacing(paths.item_index) as folder:
        folder.mkdir()
        with (folder / INDEX).open("wb") as file:  # by its name, FAISS would cut it short on a full disk, unheard
            faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))  # type: ignore[attr-defined]
        shutil.copyfile(paths.item_vectors / encode.ITEMS, folder / encode.ITEMS)
        manifest = Manifest(
            kind=kind,
            items=index.ntotal,
            dimension=index.d,
            sha256=files.sha256_file(folder / INDEX),
            items_sha256=files.sha256_file(folder / encode.ITEMS),
            vectors_sha256=files.sha256_file(paths.item_vectors / encode.VECTORS),
            checkpoint_sha256=encode.checkpoint_sha256(paths.item_vectors),
        ).model_dump()
        files.write_json(folder / MANIFEST, manifest)
        size = (folder / INDEX).stat().st_size
    return {**manifest, "index_bytes": size, f"recall@{kinds.RECALL_AT}": kinds.recall(index, vectors)}


def load(paths: VariantPaths) -> ItemIndex:
    """Read the index, if it is whole and belongs to the checkpoint that is there.

    Raises:
        MissingArtefactError: no index, or not what it was built from.
        ArtefactError: it is damaged, or belongs to other item vectors or to another checkpoint.
    """
    manifest = _manifest(paths.item_index / MANIFEST)
    _check(paths.item_index / INDEX, manifest.sha256, "is damaged")
    _check(paths.item_index / encode.ITEMS, manifest.items_sha256, "is damaged")
    _check(paths.item_vectors / encode.VECTORS, manifest.vectors_sha256, "is not what the index was built from")
    if checkpoint.digest(paths.checkpoint) != manifest.checkpoint_sha256:
        raise ArtefactError(
            f"{paths.item_index / INDEX} was built for another checkpoint than {paths.checkpoint}; "
            "materialise item_vectors and item_index again"
        )
    items = encode.read_item_ids(paths.item_index)
    return ItemIndex(items, kinds.read(manifest.kind, paths.item_index / INDEX), paths.item_vectors)


def _manifest(path: Path) -> Manifest:
    try:
        return Manifest.model_validate_json(files.require(path).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "as a whole"
        raise ArtefactError(f"{path} is damaged ({place}: {first['msg']}); materialise item_index again") from None


def _check(path: Path, sha256: str, fault: str) -> None:
    if files.sha256_file(files.require(path)) != sha256:
        raise ArtefactError(f"{path} {fault}: its checksum differs; materialise item_index again")
