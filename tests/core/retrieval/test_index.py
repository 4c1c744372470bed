"""The artefact `item_index`: built, damaged, or belonging to other vectors."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from pixrec_core import files
from pixrec_core.errors import ArtefactError, MissingArtefactError
from pixrec_core.models import checkpoint
from pixrec_core.paths import DatasetPaths, VariantPaths
from pixrec_core.retrieval import encode, faiss_index, index
from pixrec_core.settings import IndexSettings

ITEMS = 60


def build_example(root: Path, seed: int = 0, kind: str = "flat", items: int = ITEMS) -> VariantPaths:
    """An index over random item vectors; of the checkpoint only the checksum exists."""
    paths = DatasetPaths(root).variant("multimodal")
    vectors = np.random.default_rng(seed).normal(size=(items, 8))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    files.write_json(paths.checkpoint / checkpoint.CURVES, {"weights_sha256": f"weights {seed}"})
    paths.item_vectors.mkdir()
    header = {encode.CHECKPOINT: f"weights {seed}"}
    save_file({"vectors": vectors}, paths.item_vectors / encode.VECTORS, metadata=header)
    ids = [f"seed {seed} item {n}" for n in range(items)]
    pl.DataFrame({"item": ids}).write_parquet(paths.item_vectors / encode.ITEMS)
    index.build_index(IndexSettings(kind=kind), paths)
    return paths


@pytest.fixture
def paths(tmp_path: Path) -> VariantPaths:
    return build_example(tmp_path / "first")


@pytest.fixture
def others(tmp_path: Path) -> VariantPaths:
    return build_example(tmp_path / "second", seed=1)


def test_the_stats_of_the_stage(tmp_path: Path) -> None:
    paths = build_example(tmp_path)
    stats = index.build_index(IndexSettings(), paths)
    manifest = json.loads((paths.item_index / index.MANIFEST).read_text())
    assert {name: stats[name] for name in manifest} == manifest
    assert (manifest["kind"], manifest["items"], manifest["dimension"]) == ("flat", ITEMS, 8)
    assert manifest["checkpoint_sha256"] == "weights 0"
    assert (stats["recall@10"], stats["recall_queries"]) == (1, "none, the search is exact")
    assert stats["index_bytes"] > ITEMS * 8 * 4


def test_recall_of_an_approximate_index_without_users_is_measured_with_items(tmp_path: Path) -> None:
    stats = index.build_index(IndexSettings(kind="hnsw"), build_example(tmp_path))
    assert (stats["recall@10"], stats["recall_queries"]) == (1, f"{ITEMS} items")


def test_an_index_that_finds_little_is_a_warning_with_its_fix(tmp_path: Path, monkeypatch, caplog) -> None:
    """As with many items without text and photo, which have the same vector."""
    paths = build_example(tmp_path)
    monkeypatch.setattr(index, "measure_index_recall", lambda *_: 0.543)
    stats = index.build_index(IndexSettings(kind="hnsw"), paths)
    assert stats["recall@10"] == 0.543
    assert "warning: the index finds 54.3 % of the ten nearest items" in caplog.text
    assert "Set index.kind to `flat`" in caplog.text


def test_rebuilding_gives_the_same_bytes(paths: VariantPaths) -> None:
    first = (paths.item_index / index.INDEX).read_bytes()
    index.build_index(IndexSettings(), paths)
    assert (paths.item_index / index.INDEX).read_bytes() == first


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_nearest_items(tmp_path: Path, kind: str) -> None:
    paths = build_example(tmp_path, kind=kind)
    _, vectors = encode.read_item_vectors(paths.item_vectors)
    loaded = index.load_index(paths)
    rows, cosines = loaded.nearest(vectors[:5], 7)
    expected = vectors[:5] @ vectors.T
    assert [loaded.items[n] for n in rows[:, 0]] == [f"seed 0 item {n}" for n in range(5)]
    assert rows.tolist() == np.argsort(-expected, axis=1)[:, :7].tolist()
    np.testing.assert_allclose(cosines, -np.sort(-expected, axis=1)[:, :7], rtol=1e-5)


def test_a_mapped_index_is_checked_and_scores_by_cosine(tmp_path: Path) -> None:
    paths = build_example(tmp_path, kind="ivfpq", items=faiss_index.IVFPQ_MIN_ITEMS)
    _, vectors = encode.read_item_vectors(paths.item_vectors)
    loaded = index.load_index(paths)
    rows, cosines = loaded.nearest(vectors[:5], 7)
    assert rows[:, 0].tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(cosines, np.einsum("qd,qkd->qk", vectors[:5], vectors[rows]), rtol=1e-5)
    everything, _ = loaded.nearest(vectors[:1], len(vectors))  # more than the probed lists hold
    assert sorted(everything[0]) == list(range(len(vectors)))
    body = bytearray((paths.item_index / index.INDEX).read_bytes())
    body[-1] ^= 1
    files.remove(paths.item_index / index.INDEX)
    (paths.item_index / index.INDEX).write_bytes(body)
    with pytest.raises(ArtefactError, match=r"index\.faiss is damaged"):
        index.load_index(paths)
    assert loaded.nearest(vectors[:5], 7)[0].tolist() == rows.tolist()


class IncompleteSearcher:
    """Finds only two of three items for the second query."""

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.array([[7, 8, 9], [7, 8, -1]])
        return np.zeros(rows.shape, np.float32), rows


def test_exact_search_completes_a_list_that_an_approximate_index_leaves_short(paths: VariantPaths) -> None:
    _, vectors = encode.read_item_vectors(paths.item_vectors)
    rows, cosines = index.ItemIndex([], IncompleteSearcher(), paths.item_vectors).nearest(vectors[:2], 3)
    expected = vectors[1] @ vectors.T
    assert rows.tolist() == [[7, 8, 9], np.argsort(-expected)[:3].tolist()]
    np.testing.assert_allclose(cosines[1], -np.sort(-expected)[:3], rtol=1e-5)


def test_equally_near_items_come_in_popularity_order_in_a_list_of_any_length() -> None:
    """Fifty items have one vector, more than are searched at first for the last item of a list."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(90, 8)).astype(np.float32)
    vectors[random.permutation(90)[:50]] = vectors[0]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ranks, queries = random.permutation(90), vectors[:3]
    found = index.ItemIndex([str(n) for n in range(90)], faiss_index.create_index("flat", vectors), Path())
    cosines = np.round(queries.astype(np.float64) @ vectors.T, 6)
    expected = np.lexsort((np.broadcast_to(ranks, cosines.shape), -cosines))
    for k in range(1, 91):
        rows, _ = found.nearest_in_order(queries, k, ranks)
        assert rows.tolist() == expected[:, :k].tolist()
    seen = [[0], [1, 2], [3]]
    request = index.ListsRequest(queries, np.array([5, 30, 90]), seen, -0.5, ranks)
    rows, _ = found.nearest_lists(request)
    for row, items in enumerate(seen):
        cosines[row, items] -= 0.5
    expected = np.lexsort((np.broadcast_to(ranks, cosines.shape), -cosines))
    assert [each[each >= 0].tolist() for each in rows] == [
        each[:length].tolist() for each, length in zip(expected, request.lengths, strict=True)
    ]


@pytest.mark.parametrize("name", [index.INDEX, encode.ITEMS])
@pytest.mark.parametrize("offset", [0, 100, -1])
def test_a_flipped_bit_is_named(paths: VariantPaths, name: str, offset: int) -> None:
    path = paths.item_index / name
    body = bytearray(path.read_bytes())
    body[offset] ^= 1
    path.write_bytes(body)
    with pytest.raises(ArtefactError, match=rf"item_index/{name} is damaged.* run the stage `item_index` with --force"):
        index.load_index(paths)


@pytest.mark.parametrize("kind", ["flat", "ivfpq", "other"])
@pytest.mark.parametrize("body", [b"", b"IxFI", b"IxFI" + bytes(10), b"IwPQ" + b"\xff" * 500, b"{}" * 99])
def test_a_forged_index_with_its_checksum_is_an_error(paths: VariantPaths, body: bytes, kind: str) -> None:
    (paths.item_index / index.INDEX).write_bytes(body)
    manifest = files.read_json(paths.item_index / index.MANIFEST)
    changed = manifest | {"kind": kind, "sha256": files.sha256_file(paths.item_index / index.INDEX)}
    files.write_json(paths.item_index / index.MANIFEST, changed)
    with pytest.raises(ArtefactError, match=r"index\.faiss is damaged .*run the stage `item_index` with --force"):
        index.load_index(paths)


@pytest.mark.parametrize("name", [index.INDEX, encode.ITEMS, index.MANIFEST])
@pytest.mark.parametrize("size", [0, 50])
def test_a_truncated_file_is_named(paths: VariantPaths, name: str, size: int) -> None:
    path = paths.item_index / name
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ArtefactError, match=rf"item_index/{name} is damaged.* run the stage `item_index` with --force"):
        index.load_index(paths)


@pytest.mark.parametrize("name", [index.INDEX, encode.ITEMS])
def test_a_file_of_another_index_is_named(paths: VariantPaths, others: VariantPaths, name: str) -> None:
    shutil.copyfile(others.item_index / name, paths.item_index / name)
    with pytest.raises(ArtefactError, match=rf"first/.*item_index/{name} is damaged"):
        index.load_index(paths)


def test_an_index_over_other_vectors_is_refused(paths: VariantPaths, others: VariantPaths) -> None:
    shutil.copytree(others.item_index, paths.item_index, dirs_exist_ok=True)
    with pytest.raises(ArtefactError, match=r"first/.*vectors\.safetensors is not what the index was built from"):
        index.load_index(paths)


def test_an_index_of_another_checkpoint_is_refused(paths: VariantPaths, others: VariantPaths) -> None:
    for folder in ("item_index", "item_vectors"):
        shutil.copytree(getattr(others, folder), getattr(paths, folder), dirs_exist_ok=True)
    with pytest.raises(ArtefactError, match=r"index\.faiss was built for another checkpoint than .*first/"):
        index.load_index(paths)


def test_a_manifest_of_another_shape_is_named(paths: VariantPaths) -> None:
    files.write_json(paths.item_index / index.MANIFEST, {"kind": "flat inner product", "items": 60, "dimension": 8})
    with pytest.raises(ArtefactError, match=r"index\.json is damaged \(sha256: Field required\)"):
        index.load_index(paths)


def test_a_missing_index_is_named(paths: VariantPaths) -> None:
    files.remove(paths.item_index)
    with pytest.raises(MissingArtefactError, match=r"index\.json does not exist"):
        index.load_index(paths)


def test_truncated_vectors_are_named(paths: VariantPaths) -> None:
    path = paths.item_vectors / encode.VECTORS
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        ArtefactError, match=r"vectors\.safetensors is damaged .* run the stage `item_vectors` with --force"
    ):
        index.build_index(IndexSettings(), paths)


def test_vectors_of_other_items_are_named(paths: VariantPaths) -> None:
    pl.DataFrame({"item": ["a"]}).write_parquet(paths.item_vectors / encode.ITEMS)
    with pytest.raises(
        ArtefactError, match=r"has 60 vectors but .* has 1 items; run the stage `item_vectors` with --force"
    ):
        index.build_index(IndexSettings(), paths)
