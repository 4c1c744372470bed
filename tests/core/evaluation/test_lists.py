from itertools import combinations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from pixrec_core.engine import LOCAL
from pixrec_core.evaluation import lists
from pixrec_core.evaluation.lists import ItemFacts, describe_lists, diversity, tf_idf
from pixrec_core.evaluation.targets import Targets
from pixrec_core.models.encoders.build import build_item_features
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import TEST
from pixrec_core.settings import ModelSettings
from tests.core import photos_folder, sequences_file

VECTORS = np.array([[1, 0], [0, 1], [0.6, 0.8], [0, 0]], np.float32)


def test_diversity_by_hand():
    # Pairs of the first list: cosines 0, 0.6 and 0.8. The item without content makes no pair.
    chosen = sparse.csr_array([[1, 1, 1, 0], [1, 0, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0]])
    expected = [1 - 1.4 / 3, 1 - 0.6, 0, 0]
    assert np.allclose(diversity(chosen, VECTORS), expected)
    assert np.allclose(diversity(chosen, sparse.csr_array(VECTORS)), expected)


@settings(deadline=None)
@given(st.lists(st.sets(st.integers(0, 19)), min_size=1, max_size=9), st.integers(1, 4))
def test_diversity_equals_a_loop_over_pairs(chosen, per_block):
    vectors = np.abs(np.random.default_rng(0).normal(size=(20, 5)))
    vectors[::4] = 0
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    incidence = sparse.csr_array([[float(i in items) for i in range(20)] for items in chosen])
    expected = []
    for items in chosen:
        pairs = [vectors[a] @ vectors[b] for a, b in combinations(items, 2) if a % 4 and b % 4]
        expected.append(1 - np.mean(pairs) if pairs else 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lists, "USERS_PER_BLOCK", per_block)
        assert np.allclose(diversity(incidence, vectors), expected)


def test_tf_idf_by_hand():
    # Smoothed idf: 1 + ln((1 + texts) / (1 + texts with the word)); a word counts once per text.
    rare, common = 1 + np.log(3 / 2), 1
    first = np.array([common, rare]) / np.hypot(common, rare)
    assert np.allclose(tf_idf(["Red, red HAT", "red"]).toarray(), [first[::-1], [0, 1]])


def test_texts_without_a_word():
    assert tf_idf(["", "?!"]).shape == (2, 0)


def test_properties_by_hand(tmp_path):
    paths = DatasetPaths.of(tmp_path, "tiny")
    photos_folder.write(paths, {"a": "red", "b": "red", "c": "blue"})
    catalogue = sequences_file.catalogue(["aab", "a"], "abcd", imageless="d")
    sequences = sequences_file.sequences({"u": "abc", "v": "aca"})
    sequences_file.write(paths, catalogue, sequences)
    build_item_features(ModelSettings(), paths, LOCAL)
    test = sequences.filter(pl.col("split") == TEST).drop("split")
    ranked = {0: [0, 1, 2, 3], 1: []}
    ranking = pl.DataFrame(
        [(user, item, rank) for user, items in ranked.items() for rank, item in enumerate(items, 1)],
        {"user_index": pl.UInt32, "item_index": pl.UInt32, "rank": pl.Int32},
        orient="row",
    )

    found = describe_lists(ranking, Targets.of(catalogue, test), ItemFacts.read(paths, catalogue))

    # Of four interactions a has 3, b 1; c and d count as one each. u has a and b.
    assert found["novelty@10"] == pytest.approx([(np.log2(4 / 3) + 3 * 2) / 4, 0])
    assert found["repeats@10"].tolist() == [0.5, 0]
    assert found["image_diversity@10"] == pytest.approx([1 - 1 / 3, 0])
    assert set(found) == {"novelty@10", "repeats@10", "image_diversity@10", "text_diversity@10"}


def test_only_the_first_ten_count(tmp_path):
    items = [f"{i:02}" for i in range(12)]
    catalogue = sequences_file.catalogue([items[10:] * 8], items, imageless=items)
    test = sequences_file.sequences({"u": items}).filter(pl.col("split") == TEST).drop("split")
    ranking = pl.DataFrame({"user_index": [0] * 12, "item_index": range(12), "rank": range(1, 13)})
    ranking = ranking.cast({"user_index": pl.UInt32, "item_index": pl.UInt32})
    facts = ItemFacts.read(DatasetPaths.of(tmp_path, "tiny"), catalogue)
    assert describe_lists(ranking, Targets.of(catalogue, test), facts)["novelty@10"] == pytest.approx([4])
    assert list(facts.contents) == ["text_diversity@10"], "without a photo there is no diversity of photos"
