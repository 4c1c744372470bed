"""Initial token embeddings equal latent semantic analysis, computed by a plain SVD."""

import numpy as np
import pytest

from pixrec_core.models.backbones import tiny
from pixrec_core.models.backbones.tiny import RMS, word_vectors

TEXTS = [
    "Title: Red wool hat",
    "Title: Blue wool hat",
    "Title: Red wool scarf",
    "Title: Steel pan",
    "Title: Steel lid Features: Steel",
]


def plain_lsa(rows: list[list[int]], rank: int) -> np.ndarray:
    """Rows of the truncated SVD of smoothed, binary TF-IDF with rows of unit length."""
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
def test_mean_vectors_of_texts_have_the_cosines_of_lsa(size: int) -> None:
    tokenizer = tiny._tokenizer(TEXTS)
    tokens, vectors = word_vectors(tokenizer, TEXTS, size)
    vector = dict(zip(tokens.tolist(), vectors.numpy(), strict=True))
    rows = [tokenizer.encode(text) for text in TEXTS]
    means = np.array([np.mean([vector[token] for token in set(row)], axis=0) for row in rows])
    expected = plain_lsa(rows, min(size, len(TEXTS)))
    np.testing.assert_allclose(cosines(means), cosines(expected), atol=1e-5)
    assert np.sqrt((vectors.numpy() ** 2).mean()) == pytest.approx(RMS, rel=1e-5)


def test_tiny_starts_with_them_and_other_tokens_stay_random() -> None:
    model, processor = tiny.create(iter(TEXTS))
    tokens, vectors = word_vectors(processor.tokenizer, TEXTS, model.config.text_config.hidden_size)
    weights = model.get_input_embeddings().weight.detach()
    assert (weights[tokens] == vectors).all()
    others = np.setdiff1d(np.arange(len(weights)), tokens.numpy())
    assert 0 < weights[others].abs().max() < 0.2


def test_tokens_have_no_case_and_do_not_cross_units_of_scripts_without_spaces() -> None:
    tokenizer = tiny._tokenizer(["Title: Red WOOL hat", "Title: red wool hat", "Title: 红羊毛帽", "Title: 红羊毛帽"])
    assert tokenizer.tokenize("Title: RED Wool ｈａｔ") == ["Title:", "Ġred", "Ġwool", "Ġhat"]  # noqa: RUF001
    assert [tokenizer.decode(token).strip() for token in tokenizer.encode("红羊毛帽")] == list("红羊毛帽")


@pytest.mark.parametrize(("texts", "words"), [(["Title: Steel lid"], True), (["", ""], False), ([], False)])
def test_catalogues_with_one_text_or_none(texts: list[str], words: bool) -> None:
    tokens, vectors = word_vectors(tiny._tokenizer(TEXTS), texts, 8)
    assert len(tokens) == len(vectors)
    assert bool(len(tokens)) is words
    assert np.isfinite(vectors.numpy()).all()
