"""FAISS index over item vectors, with what is needed to tell a damaged or foreign one."""

from pathlib import Path
from typing import Any

import faiss

from pixrec_core import files
from pixrec_core.errors import ArtefactError
from pixrec_core.paths import VariantPaths
from pixrec_core.retrieval import encode
from pixrec_core.stages import Stats

INDEX = "index.faiss"
MANIFEST = "index.json"


def build(paths: VariantPaths) -> Stats:
    """Exact inner-product index: on unit vectors that is the cosine."""
    _, vectors = encode.read_item_vectors(paths.item_vectors)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    with files.replacing(paths.item_index) as folder:
        folder.mkdir()
        faiss.write_index(index, str(folder / INDEX))
        manifest = {
            "kind": "flat inner product",
            "items": index.ntotal,
            "dimension": index.d,
            "sha256": files.sha256_file(folder / INDEX),
            "vectors_sha256": files.sha256_file(paths.item_vectors / encode.VECTORS),
        }
        files.write_json(folder / MANIFEST, manifest)
    return manifest


def load(paths: VariantPaths) -> tuple[list[str], Any]:
    """Item ids and the index over them.

    Raises:
        MissingArtefactError: no index.
        ArtefactError: it is damaged, or belongs to other item vectors.
    """
    manifest = files.read_json(paths.item_index / MANIFEST)
    _check(paths.item_index / INDEX, manifest["sha256"], "is damaged")
    _check(paths.item_vectors / encode.VECTORS, manifest["vectors_sha256"], "is not what the index was built from")
    return encode.read_item_ids(paths.item_vectors), faiss.read_index(str(paths.item_index / INDEX))


def _check(path: Path, sha256: str, fault: str) -> None:
    if files.sha256_file(files.require(path)) != sha256:
        raise ArtefactError(f"{path} {fault}: its checksum differs; materialise item_index again")
