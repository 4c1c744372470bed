"""Kinds of index over made-up vectors, against brute force."""

import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import psutil
import pytest

from pixrec_core.errors import SettingsError
from pixrec_core.retrieval import kinds
from pixrec_core.settings import IndexSettings


def clustered(items: int, dimension: int = 16, seed: int = 0) -> kinds.Vectors:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(50, dimension))
    vectors = centres[random.integers(50, size=items)] + 0.4 * random.normal(size=(items, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors() -> kinds.Vectors:
    return clustered(kinds.IVFPQ_LEAST)


@pytest.fixture(scope="module")
def made(vectors: kinds.Vectors) -> dict[str, Any]:
    return {kind: kinds.make(kind, vectors) for kind in kinds.KINDS}


@pytest.mark.parametrize(
    ("kind", "items", "chosen"),
    [("auto", 500, "flat"), ("auto", 501, "hnsw"), ("hnsw", 10, "hnsw"), ("flat", 9999, "flat"),
     ("auto", 10**8, "hnsw"), ("ivfpq", 9984, "ivfpq")],
)  # fmt: skip
def test_the_kind_goes_by_the_catalogue_unless_it_is_named(kind: str, items: int, chosen: str) -> None:
    assert kinds.choose(IndexSettings(kind=kind, exact_items=500), items) == chosen


def test_too_few_items_to_learn_codes_from_are_told_with_the_mend() -> None:
    with pytest.raises(SettingsError, match=r"from 9,984 items or more; the catalogue has 40: set it to \"auto\""):
        kinds.choose(IndexSettings(kind="ivfpq"), 40)


@pytest.mark.parametrize(
    ("items", "lists"),
    [(9_984, 256), (19_967, 256), (19_968, 512), (1_000_000, 4_096), (10_000_000, 16_384), (100_000_000, 32_768)],
)
def test_lists_by_the_size_of_the_catalogue(items: int, lists: int) -> None:
    assert kinds.ivfpq_lists(items) == lists


def test_a_byte_of_code_stands_for_two_numbers_or_for_one_of_an_odd_dimension(made: dict[str, Any]) -> None:
    odd = kinds.make("ivfpq", clustered(kinds.IVFPQ_LEAST, dimension=3))
    assert [faiss.downcast_index(index.base_index).code_size for index in (made["ivfpq"], odd)] == [8, 3]


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_made_again_it_is_the_same_to_the_byte(kind: str, vectors: kinds.Vectors, made: dict[str, Any]) -> None:
    again = kinds.make(kind, vectors)
    assert faiss.serialize_index(again).tobytes() == faiss.serialize_index(made[kind]).tobytes()


def test_what_codes_are_learnt_from_is_drawn_alike() -> None:
    many = clustered(17_000, dimension=2)
    assert kinds.IVFPQ_SAMPLE * kinds.ivfpq_lists(len(many)) < len(many), "all are taken, none drawn"
    first, second = (faiss.serialize_index(kinds.make("ivfpq", many)).tobytes() for _ in range(2))
    assert first == second


@pytest.mark.parametrize(("kind", "expected"), [("flat", 1.0), ("hnsw", 0.99), ("ivfpq", 0.97)])
def test_most_neighbours_are_found(kind: str, expected: float, vectors: kinds.Vectors, made: dict[str, Any]) -> None:
    assert expected <= kinds.recall(made[kind], vectors) <= 1


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_written_and_read_it_answers_the_same_and_by_cosine(
    kind: str, vectors: kinds.Vectors, made: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "index"
    faiss.write_index(made[kind], str(path))
    read = kinds.read(kind, path)
    path.unlink()  # as when another takes its name
    cosines, rows = read.search(vectors[:20], 50)
    expected = made[kind].search(vectors[:20], 50)
    assert (cosines.tolist(), rows.tolist()) == tuple(each.tolist() for each in expected)
    np.testing.assert_allclose(cosines, np.einsum("qd,qkd->qk", vectors[:20], vectors[rows]), rtol=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="no other system tells what is mapped")
@pytest.mark.parametrize("kind", kinds.KINDS)
def test_only_ivfpq_stays_on_disk(kind: str, made: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "index"
    faiss.write_index(made[kind], str(path))
    index = kinds.read(kind, path)
    assert index.ntotal == made[kind].ntotal
    assert any(each.path == str(path) for each in psutil.Process().memory_maps()) is (kind == "ivfpq")


class Planned:
    """Answers with given rows."""

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = np.array(rows)

    def search(self, queries: np.ndarray, k: int) -> tuple[None, np.ndarray]:
        assert len(queries) == len(self.rows)
        assert k == self.rows.shape[1]
        return None, self.rows


def test_recall_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "RECALL_AT", 2)
    angles = np.radians([0, 10, 21, 33])  # nearest two: 1 2, 0 2, 1 3, 2 1
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = {0: [0, 1, 2], 1: [1, 3, -1], 2: [2, 1, 0], 3: [2, 1, 0]}  # 2 of 2, none, 1 of 2, 2 of 2
    order = np.random.default_rng(0).choice(4, 4, replace=False)
    assert kinds.recall(Planned([found[item] for item in order]), vectors) == pytest.approx(5 / 8)


def test_equal_neighbours_are_as_good_as_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "RECALL_AT", 2)
    vectors = np.ones((5, 1), np.float32)
    order = np.random.default_rng(0).choice(5, 5, replace=False)
    assert kinds.recall(Planned([[item, (item + 2) % 5, (item + 3) % 5] for item in order]), vectors) == 1
    assert kinds.recall(Planned([[item, (item + 2) % 5, -1] for item in order]), vectors) == 0.5


def test_a_lone_item_has_no_neighbour_to_miss() -> None:
    vectors = np.ones((1, 4), np.float32)
    assert kinds.recall(kinds.make("flat", vectors), vectors) == 1


def test_threads_are_given_back(vectors: kinds.Vectors) -> None:
    faiss.omp_set_num_threads(2)
    kinds.make("hnsw", vectors[:10])
    assert faiss.omp_get_max_threads() == 2
    faiss.omp_set_num_threads(1)
