"""Latent semantic analysis of item texts (Deerwester et al. 1990, "Indexing by Latent Semantic Analysis", JASIS).

The vector of a text is its row in the truncated decomposition of the TF-IDF matrix, X = U S V^T. New items and queries
have the row x V / S. All rows get unit length, so IDF, V and 1 / S can be one vector per word: the vector of a text is
the weighted sum of the vectors of its words.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import sparse
from scipy.sparse.linalg import norm

from pixrec_core import files
from pixrec_core.data.words import words
from pixrec_core.errors import ArtefactError
from pixrec_core.models.encoders.base import ENCODER_FILE, ItemEncoder, Modality, Vectors, unit_length

DIMENSIONS: Final = 256  # at most; the best of few values on validation targets of one data set, fashion purchases
LEAST_DIMENSIONS: Final = 16  # with fewer than 128 texts
LEAST_TEXTS: Final = 2  # with a word; others say nothing about similarity
MOST_WORDS: Final = 50_000  # in the vocabulary, the most frequent ones: 50 MB of numbers
MOST_TEXTS: Final = 100_000  # to fit on, a random sample of more
SEED: Final = 0
ARRAYS: Final = "lsa.safetensors"


class Lsa(ItemEncoder):
    """A vector for each of w words: `word_vectors` (w, F)."""

    modalities: frozenset[Modality] = frozenset({"text"})
    fitted: ClassVar[bool] = True

    def __init__(self, vocabulary: Sequence[str], word_vectors: NDArray[np.float32]) -> None:
        self.vocabulary = {word: column for column, word in enumerate(vocabulary)}
        self.word_vectors = word_vectors

    @property
    def description(self) -> dict[str, Any]:
        return {"encoder": "lsa", "vocabulary": list(self.vocabulary)}

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        return unit_length(np.asarray(_term_frequencies(map(words, texts), self.vocabulary) @ self.word_vectors))

    def save(self, folder: Path) -> None:
        super().save(folder)
        save_file({"word_vectors": self.word_vectors}, folder / ARRAYS)


def create(_name: str, texts: Callable[[], Sequence[str]], _max_tokens: int) -> ItemEncoder:
    """Fit on texts; each distinct text counts once."""
    distinct = sorted(set(texts()))
    if len(distinct) > MOST_TEXTS:
        chosen = np.random.default_rng(SEED).choice(len(distinct), MOST_TEXTS, replace=False)
        distinct = [distinct[row] for row in np.sort(chosen)]
    return fit(distinct)


def load(folder: Path) -> ItemEncoder:
    """Read a fitted analysis.

    Raises:
        MissingArtefactError: the folder holds none.
        ArtefactError: a file is damaged.
    """
    vocabulary = files.read_json(folder / ENCODER_FILE)["vocabulary"]
    try:
        return Lsa(vocabulary, load_file(files.require(folder / ARRAYS))["word_vectors"])
    except SafetensorError as error:
        raise ArtefactError(
            f"{folder / ARRAYS} is damaged ({error}); run the stage `item_features` with --force"
        ) from error


def fit(texts: Sequence[str], dimensions: int = DIMENSIONS) -> Lsa:
    """Return the analysis of texts, of at most `dimensions`. If no two texts share a word, all vectors are 0."""
    from sklearn.utils.extmath import randomized_svd

    lists = [words(text) for text in texts]
    found = Counter(word for each in lists for word in set(each))
    vocabulary = sorted(word for word, count in found.most_common(MOST_WORDS) if count >= LEAST_TEXTS)
    if not vocabulary:
        return Lsa([], np.zeros((0, 1), np.float32))
    columns = {word: column for column, word in enumerate(vocabulary)}
    counts = np.array([found[word] for word in vocabulary], np.float32)
    inverse_frequencies = np.log((1 + len(texts)) / (1 + counts)) + 1
    matrix = _term_frequencies(lists, columns).multiply(inverse_frequencies).tocsr()
    lengths = norm(matrix, axis=1)
    matrix = sparse.diags_array(np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0)) @ matrix
    # With as many dimensions as texts, the rows of all texts would be orthogonal and say nothing.
    wanted = min(dimensions, max(LEAST_DIMENSIONS, len(texts) // 8), *matrix.shape)
    _, singular_values, right = randomized_svd(matrix, wanted, n_iter=5, random_state=SEED)
    kept = singular_values > 1e-3 * singular_values[0]
    vectors = inverse_frequencies[:, None] * right[kept].T / singular_values[kept]
    return Lsa(vocabulary, np.ascontiguousarray(vectors, np.float32))


def _term_frequencies(lists: Iterable[Sequence[str]], columns: dict[str, int]) -> sparse.csr_array:
    """Return (n, w) 1 + ln(count) of each known word in each list of words."""
    indices, values, ends = list[int](), list[int](), [0]
    for each in lists:
        counts = Counter(columns[word] for word in each if word in columns)
        indices.extend(counts)
        values.extend(counts.values())
        ends.append(len(indices))
    weights = 1 + np.log(np.array(values, np.float32))
    return sparse.csr_array((weights, np.array(indices, np.int64), ends), shape=(len(ends) - 1, len(columns)))
