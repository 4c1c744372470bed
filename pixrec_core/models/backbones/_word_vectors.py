"""Initial token embeddings from latent semantic analysis (Deerwester et al., JASIS 1990) of the item texts."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

RMS = 0.1  # root mean square of the vectors: larger than what untrained layers add, so it has an effect after them


def word_vectors(tokenizer: Any, texts: Sequence[str], size: int) -> tuple[Tensor, Tensor]:
    """A vector for every token that occurs in some texts, such that similar texts have similar mean vectors.

    The mean vector of a text is, up to its length, its row in the truncated SVD of the TF-IDF matrix.

    Args:
        tokenizer: of transformers.
        texts: the corpus.
        size: H, size of the vectors; components beyond the rank of the matrix are zero.

    Returns:
        (T,) token ids and (T, H) vectors with root mean square `RMS`; T = 0 if no text has a token.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.utils.extmath import randomized_svd

    if not any(texts):
        return torch.empty(0, dtype=torch.int64), torch.empty(0, size)
    vectorizer = TfidfVectorizer(analyzer=tokenizer.encode, binary=True)
    matrix = vectorizer.fit_transform(texts)
    rank = min(size, *matrix.shape)
    _, _, components = randomized_svd(matrix, rank, n_iter=5, random_state=0)
    vectors = torch.zeros(matrix.shape[1], size)
    vectors[:, :rank] = torch.from_numpy(components.T * vectorizer.idf_[:, None])
    vectors *= RMS / vectors.square().mean().sqrt()
    return torch.from_numpy(vectorizer.get_feature_names_out().astype("int64")), vectors
