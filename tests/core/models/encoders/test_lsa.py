"""Latent semantic analysis agrees with a plain SVD, and folds in texts that it was not fitted on."""

import numpy as np
import pytest

from pixrec_core.data.words import words
from pixrec_core.models.encoders import lsa

COLOURS, KINDS, MATERIALS = ("red", "blue", "green", "black"), ("shoe", "sock", "scarf", "tie"), ("wool", "silk")
TEXTS = [f"{colour} {kind} {material}" for colour in COLOURS for kind in KINDS for material in MATERIALS]


def plain_lsa(texts: list[str], rank: int) -> np.ndarray:
    """Rows of U of the truncated SVD of sublinear TF-IDF with rows of unit length; words of one text are left out."""
    lists = [words(text) for text in texts]
    vocabulary = [word for word in {w for each in lists for w in each} if sum(word in each for each in lists) > 1]
    counts = np.array([[each.count(word) for word in vocabulary] for each in lists], float)
    idf = np.log((1 + len(texts)) / (1 + (counts > 0).sum(0))) + 1
    weights = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0) * idf
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    left, values, _ = np.linalg.svd(weights, full_matrices=False)
    left = left[:, :rank][:, values[:rank] > 1e-3 * values[0]]
    return left / np.linalg.norm(left, axis=1, keepdims=True)


@pytest.mark.parametrize("rank", [3, 16])
def test_cosines_equal_those_of_a_plain_svd(rank: int) -> None:
    texts = [*TEXTS, "red red shoe", "wool wool wool band"]
    vectors = lsa.fit(texts, rank).encode_texts(texts)
    expected = plain_lsa(texts, rank)
    np.testing.assert_allclose(vectors @ vectors.T, expected @ expected.T, atol=1e-4)


def test_case_and_width_do_not_matter_and_unknown_words_say_nothing() -> None:
    encoder = lsa.fit(TEXTS)
    vectors = encoder.encode_texts(["red shoe wool", "Red SHOE, wool!", "\uff52\uff45\uff44 shoe wool", "trumpet", ""])
    np.testing.assert_allclose(vectors[1:3] @ vectors[0], 1, atol=1e-5)
    assert not vectors[3:].any()


def test_similar_texts_are_similar_in_scripts_without_spaces() -> None:
    texts = [f"{colour}{kind}" for colour in "红蓝绿黑白黄" for kind in "鞋袜帽裤裙衣"]
    vectors = lsa.fit(texts).encode_texts(texts)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[7] + 0.1


@pytest.mark.parametrize("texts", [[], [""], ["", "!"], ["red shoe", "blue hat"]])
def test_texts_that_share_no_word_have_no_features(texts: list[str]) -> None:
    assert not lsa.fit(texts).encode_texts([*texts, "red"]).any()


def test_a_sample_of_many_texts_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lsa, "MOST_TEXTS", 20)
    encoder = lsa.create("lsa", lambda: TEXTS * 2, 32)
    assert np.linalg.norm(encoder.encode_texts(TEXTS), axis=1) == pytest.approx(1, abs=1e-5)
    monkeypatch.setattr(lsa, "MOST_WORDS", 4)
    assert len(lsa.fit(TEXTS).vocabulary) == 4
