"""Vectors of words before any training: those of latent semantic analysis (Deerwester et al., JASIS 1990)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

TYPICAL = 0.1  # root mean square of what is returned: above what untrained layers add, so it shows after them


def word_vectors(tokenizer: Any, texts: Sequence[str], size: int) -> tuple[Tensor, Tensor]:
    """Tokens that occur in some texts, and a vector for each: texts of like words have like means of vectors.

    The mean of a text's vectors is, but for its length, its row in the truncated decomposition of the texts'
    TF-IDF matrix: rare words weigh more, and words of one kind lie together.

    Args:
        tokenizer: cuts texts into tokens.
        texts: N of them.
        size: H, numbers in a vector; where fewer directions are found, the rest are zero.

    Returns:
        (T,) token ids and (T, H) vectors, of root mean square `TYPICAL`; none where no text has a word.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.utils.extmath import randomized_svd

    if not any(texts):
        return torch.empty(0, dtype=torch.int64), torch.empty(0, size)
    weighing = TfidfVectorizer(analyzer=tokenizer.encode, binary=True)
    weights = weighing.fit_transform(texts)
    directions = min(size, *weights.shape)
    _, _, found = randomized_svd(weights, directions, n_iter=5, random_state=0)
    vectors = torch.zeros(weights.shape[1], size)
    vectors[:, :directions] = torch.from_numpy(found.T * weighing.idf_[:, None])
    vectors *= TYPICAL / vectors.square().mean().sqrt()
    return torch.from_numpy(weighing.get_feature_names_out().astype("int64")), vectors
