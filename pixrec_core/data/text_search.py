"""BM25 over texts (Lucene's, k1 1.5, b 0.75), indexed once."""

from collections.abc import Mapping, Sequence

import bm25s
import numpy as np
from numpy.typing import NDArray
from scipy import sparse


class TextSearch:
    """An index over n texts of w different words; stopwords do not count.

    BM25 is a sum over the query's words, so queries are rows of word counts, and a sum of queries a query.

    Attributes:
        counts: (n, w) how often each text has each word.
        gain: (n, w) BM25 of each text for each word.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        tokens = bm25s.tokenize(list(texts), show_progress=False)
        self._columns: Mapping[str, int] = tokens.vocab
        shape = (len(texts), len(tokens.vocab))
        self.counts = self._matrix(tokens.ids)
        self.gain = sparse.csc_array(shape, dtype=np.float32)
        if tokens.vocab:
            index = bm25s.BM25()
            index.index(tokens, create_empty_token=False, show_progress=False)
            parts = (index.scores["data"], index.scores["indices"], index.scores["indptr"])
            self.gain = sparse.csc_array(parts, shape=shape)

    def queries(self, texts: Sequence[str]) -> sparse.csr_array:
        """Texts as queries, (len(texts), w); words that no indexed text has are left out."""
        words = bm25s.tokenize(list(texts), show_progress=False, return_ids=False)
        return self._matrix([[self._columns[word] for word in each if word in self._columns] for each in words])

    def scores(self, queries: sparse.csr_array) -> NDArray[np.float32]:
        """BM25 of every indexed text for each query, (queries, n)."""
        scores: NDArray[np.float32] = (queries @ self.gain.T).toarray()
        return scores

    def _matrix(self, lists: Sequence[Sequence[int]]) -> sparse.csr_array:
        """Lists of words as rows of counts."""
        columns = np.array([word for each in lists for word in each], np.int64)
        ends = np.concatenate([[0], np.cumsum([len(each) for each in lists], dtype=np.int64)])
        ones = np.ones(len(columns), np.float32)
        matrix = sparse.csr_array((ones, columns, ends), shape=(len(lists), len(self._columns)))
        matrix.sum_duplicates()
        return matrix
