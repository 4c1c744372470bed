"""Words start where latent semantic analysis puts them: checked against a plain decomposition."""

import numpy as np
import pytest

from pixrec_core.models.backbones import tiny
from pixrec_core.models.backbones._word_vectors import TYPICAL, word_vectors

TEXTS = [
    "Title: Red wool hat",
    "Title: Blue wool hat",
    "Title: Red wool scarf",
    "Title: Steel pan",
    "Title: Steel lid Features: Steel",
]


def plain_analysis(rows: list[list[int]], rank: int) -> np.ndarray:
    """Rows of TF-IDF (each token once, smoothed as by one more text with every token), unit length, at a rank."""
    tokens = sorted({token for row in rows for token in row})
    has = np.array([[token in row for token in tokens] for row in rows], dtype=float)
    weighted = has * (np.log((1 + len(rows)) / (1 + has.sum(0))) + 1)
    weighted /= np.linalg.norm(weighted, axis=1, keepdims=True)
    left, values, _ = np.linalg.svd(weighted, full_matrices=False)
    return left[:, :rank] * values[:rank]


def cosines(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors @ vectors.T


@pytest.mark.parametrize("size", [2, 128])
def test_means_of_words_lie_as_the_texts_do_in_latent_semantic_analysis(size: int) -> None:
    tokenizer = tiny._tokenizer(TEXTS)
    tokens, vectors = word_vectors(tokenizer, TEXTS, size)
    vector = dict(zip(tokens.tolist(), vectors.numpy(), strict=True))
    rows = [tokenizer.encode(text) for text in TEXTS]
    means = np.array([np.mean([vector[token] for token in set(row)], axis=0) for row in rows])
    expected = plain_analysis(rows, min(size, len(TEXTS)))
    np.testing.assert_allclose(cosines(means), cosines(expected), atol=1e-5)
    assert np.sqrt((vectors.numpy() ** 2).mean()) == pytest.approx(TYPICAL, rel=1e-5)


def test_a_backbone_starts_with_them_and_words_that_no_text_has_stay_as_drawn() -> None:
    model, processor = tiny.create(iter(TEXTS))
    tokens, vectors = word_vectors(processor.tokenizer, TEXTS, model.config.text_config.hidden_size)
    weights = model.get_input_embeddings().weight.detach()
    assert (weights[tokens] == vectors).all()
    others = np.setdiff1d(np.arange(len(weights)), tokens.numpy())
    assert 0 < weights[others].abs().max() < 0.2


@pytest.mark.parametrize(("texts", "words"), [(["Title: Steel lid"], True), (["", ""], False), ([], False)])
def test_a_catalogue_of_one_text_or_none(texts: list[str], words: bool) -> None:
    tokens, vectors = word_vectors(tiny._tokenizer(TEXTS), texts, 8)
    assert len(tokens) == len(vectors)
    assert bool(len(tokens)) is words
    assert np.isfinite(vectors.numpy()).all()
