"""BM25 text search (Lucene's variant, k1 = 1.5, b = 0.75)."""

from collections.abc import Sequence

import bm25s
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from pixrec_core.data.words import words


class TextSearch:
    """An index of n texts with w distinct words (`data.words`).

    BM25 is a sum over the words of a query, so a query is a row of word counts, and the sum of two queries is a query.

    Attributes:
        counts: (n, w) number of occurrences of each word in each text.
        weights: (n, w) BM25 of each text for each word.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._columns: dict[str, int] = {}
        rows = [[self._columns.setdefault(word, len(self._columns)) for word in words(text)] for text in texts]
        shape = (len(rows), len(self._columns))
        self.counts = self._matrix(rows)
        self.weights = sparse.csc_array(shape, dtype=np.float32)
        if self._columns:
            index = bm25s.BM25()
            index.index((rows, self._columns), create_empty_token=False, show_progress=False)
            parts = (index.scores["data"], index.scores["indices"], index.scores["indptr"])
            self.weights = sparse.csc_array(parts, shape=shape)

    def queries(self, texts: Sequence[str]) -> sparse.csr_array:
        """Return texts as queries, (len(texts), w), without the words that are in no indexed text."""
        return self._matrix([[self._columns[word] for word in words(text) if word in self._columns] for text in texts])

    def scores(self, queries: sparse.csr_array) -> NDArray[np.float32]:
        """Return the BM25 of every indexed text for each query, (queries, n)."""
        scores: NDArray[np.float32] = (queries @ self.weights.T).toarray()
        return scores

    def _matrix(self, lists: Sequence[Sequence[int]]) -> sparse.csr_array:
        """Return lists of columns as rows of counts."""
        columns = np.array([column for row in lists for column in row], np.int64)
        ends = np.concatenate([[0], np.cumsum([len(row) for row in lists], dtype=np.int64)])
        ones = np.ones(len(columns), np.float32)
        matrix = sparse.csr_array((ones, columns, ends), shape=(len(lists), len(self._columns)))
        matrix.sum_duplicates()
        return matrix
