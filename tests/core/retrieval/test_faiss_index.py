"""Kinds of FAISS index over synthetic vectors, compared with brute force."""

import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import psutil
import pytest

from pixrec_core.errors import SettingsError
from pixrec_core.retrieval import faiss_index
from pixrec_core.settings import IndexSettings


def clustered(items: int, dimension: int = 16, seed: int = 0) -> faiss_index.Vectors:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(50, dimension))
    vectors = centres[random.integers(50, size=items)] + 0.4 * random.normal(size=(items, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors() -> faiss_index.Vectors:
    return clustered(faiss_index.IVFPQ_MIN_ITEMS)


@pytest.fixture(scope="module")
def created(vectors: faiss_index.Vectors) -> dict[str, Any]:
    return {kind: faiss_index.create_index(kind, vectors) for kind in faiss_index.INDEX_KINDS}


@pytest.mark.parametrize(
    ("kind", "items", "chosen"),
    [("auto", 500, "flat"), ("auto", 501, "hnsw"), ("hnsw", 10, "hnsw"), ("flat", 9999, "flat"),
     ("auto", 10**8, "hnsw"), ("ivfpq", 9984, "ivfpq")],
)  # fmt: skip
def test_auto_chooses_the_kind_by_catalogue_size(kind: str, items: int, chosen: str) -> None:
    assert faiss_index.choose_index_kind(IndexSettings(kind=kind, exact_items=500), items) == chosen


def test_ivfpq_refuses_a_catalogue_too_small_to_train_its_codes() -> None:
    with pytest.raises(SettingsError, match=r"at least 9,984 items .* has 40: set index.kind to \"auto\""):
        faiss_index.choose_index_kind(IndexSettings(kind="ivfpq"), 40)


@pytest.mark.parametrize(
    ("items", "lists"),
    [(9_984, 256), (19_967, 256), (19_968, 512), (1_000_000, 4_096), (10_000_000, 16_384), (100_000_000, 32_768)],
)
def test_lists_by_the_size_of_the_catalogue(items: int, lists: int) -> None:
    assert faiss_index.ivfpq_lists(items) == lists


def test_a_byte_of_code_covers_two_dimensions_or_one_of_an_odd_number(created: dict[str, Any]) -> None:
    odd = faiss_index.create_index("ivfpq", clustered(faiss_index.IVFPQ_MIN_ITEMS, dimension=3))
    assert [faiss.downcast_index(index.base_index).code_size for index in (created["ivfpq"], odd)] == [8, 3]


@pytest.mark.parametrize("kind", faiss_index.INDEX_KINDS)
def test_creating_an_index_twice_gives_the_same_bytes(
    kind: str, vectors: faiss_index.Vectors, created: dict[str, Any]
) -> None:
    again = faiss_index.create_index(kind, vectors)
    assert faiss.serialize_index(again).tobytes() == faiss.serialize_index(created[kind]).tobytes()


def test_the_training_sample_of_codes_is_deterministic() -> None:
    many = clustered(17_000, dimension=2)
    assert faiss_index.IVFPQ_TRAINING_ITEMS * faiss_index.ivfpq_lists(len(many)) < len(many), (
        "the catalogue is large enough to be sampled"
    )
    first, second = (faiss.serialize_index(faiss_index.create_index("ivfpq", many)).tobytes() for _ in range(2))
    assert first == second


@pytest.mark.parametrize(("kind", "expected"), [("flat", 1.0), ("hnsw", 0.99), ("ivfpq", 0.97)])
def test_most_neighbours_are_found(
    kind: str, expected: float, vectors: faiss_index.Vectors, created: dict[str, Any]
) -> None:
    rows = np.arange(0, len(vectors), 10)
    assert expected <= faiss_index.measure_index_recall(created[kind], vectors, vectors[rows], rows) <= 1


@pytest.mark.parametrize("kind", faiss_index.INDEX_KINDS)
def test_an_index_read_from_its_file_gives_the_same_cosines(
    kind: str, vectors: faiss_index.Vectors, created: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "index"
    faiss.write_index(created[kind], str(path))
    read = faiss_index.read_index(kind, path)
    path.unlink()  # as when another index replaces it
    cosines, rows = read.search(vectors[:20], 50)
    expected = created[kind].search(vectors[:20], 50)
    assert (cosines.tolist(), rows.tolist()) == tuple(each.tolist() for each in expected)
    np.testing.assert_allclose(cosines, np.einsum("qd,qkd->qk", vectors[:20], vectors[rows]), rtol=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists mapped files")
@pytest.mark.parametrize("kind", faiss_index.INDEX_KINDS)
def test_only_ivfpq_stays_on_disk(kind: str, created: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "index"
    faiss.write_index(created[kind], str(path))
    index = faiss_index.read_index(kind, path)
    assert index.ntotal == created[kind].ntotal
    assert any(each.path == str(path) for each in psutil.Process().memory_maps()) is (kind == "ivfpq")


class FixedSearcher:
    """Returns given rows."""

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = np.array(rows)

    def search(self, queries: np.ndarray, k: int) -> tuple[None, np.ndarray]:
        assert len(queries) == len(self.rows)
        assert k == self.rows.shape[1]
        return None, self.rows


def test_recall_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_index, "RECALL_AT", 2)
    angles = np.radians([0, 10, 21, 33])  # nearest two: 1 2, 0 2, 1 3, 2 1
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = {0: [0, 1, 2], 1: [1, 3, -1], 2: [2, 1, 0], 3: [2, 1, 0]}  # 2 of 2, none, 1 of 2, 2 of 2
    searcher = FixedSearcher(list(found.values()))
    assert faiss_index.measure_index_recall(searcher, vectors, vectors, np.arange(4)) == pytest.approx(5 / 8)


def test_recall_of_queries_that_are_no_items_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_index, "RECALL_AT", 2)
    vectors = np.eye(3, 4, dtype=np.float32)
    queries = np.array([[0.8, 0.6, 0, 0], [0, 0.6, 0.8, 0]], np.float32)  # nearest two: 0 1, 2 1
    searcher = FixedSearcher([[0, 2], [2, 1]])
    assert faiss_index.measure_index_recall(searcher, vectors, queries) == pytest.approx(3 / 4)


def test_recall_counts_equally_near_items_as_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_index, "RECALL_AT", 2)
    vectors = np.ones((5, 1), np.float32)
    rows = np.arange(5)
    whole = FixedSearcher([[item, (item + 2) % 5, (item + 3) % 5] for item in rows])
    half = FixedSearcher([[item, (item + 2) % 5, -1] for item in rows])
    assert faiss_index.measure_index_recall(whole, vectors, vectors, rows) == 1
    assert faiss_index.measure_index_recall(half, vectors, vectors, rows) == 0.5


def test_recall_in_a_catalogue_of_one_item_is_1() -> None:
    vectors = np.ones((1, 4), np.float32)
    assert (
        faiss_index.measure_index_recall(faiss_index.create_index("flat", vectors), vectors, vectors, np.array([0]))
        == 1
    )


def test_creating_hnsw_restores_the_number_of_threads(vectors: faiss_index.Vectors) -> None:
    faiss.omp_set_num_threads(2)
    faiss_index.create_index("hnsw", vectors[:10])
    assert faiss.omp_get_max_threads() == 2
    faiss.omp_set_num_threads(1)


def test_recall_of_an_index_over_many_equal_vectors_is_that_of_the_queries() -> None:
    """Half of the items without text and photo: asked for its own vectors such an index looks better than it is."""
    draw = np.random.default_rng(0).normal
    vectors = np.concatenate([np.repeat(draw(size=(1, 16)), 400, axis=0), draw(size=(400, 16))])
    vectors, queries = (
        (each / np.linalg.norm(each, axis=1, keepdims=True)).astype(np.float32)
        for each in (vectors, draw(size=(50, 16)))
    )
    searcher = faiss_index.create_index("hnsw", vectors)
    _, rows = searcher.search(queries, 10)
    cosines = queries @ vectors.T
    tenth = np.sort(cosines, axis=1)[:, -10]
    found = [
        sum(row >= 0 and cosines[n, row] >= tenth[n] - 1e-5 for row in set(of_query.tolist()))
        for n, of_query in enumerate(rows)
    ]
    expected = np.minimum(found, 10).sum() / 500
    assert faiss_index.measure_index_recall(searcher, vectors, queries) == pytest.approx(expected)
