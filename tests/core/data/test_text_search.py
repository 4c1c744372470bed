"""BM25 as a matrix product agrees with bm25s."""

import bm25s
import numpy as np
import pytest

from pixrec_core.data.text_search import TextSearch

TEXTS = ["red wool shoe", "blue shoe shoe", "", "the green hat", "blue wool hat with a red band"]


@pytest.mark.parametrize("query", ["red shoe", "blue", "shoe shoe hat unknown", "wool band wool"])
def test_scores_equal_those_of_bm25s(query: str) -> None:
    index = bm25s.BM25()
    tokens = bm25s.tokenize(TEXTS, stopwords=[], token_pattern=r"\w+", show_progress=False)
    index.index(tokens, show_progress=False)
    words = [word for word in query.split() if word != "unknown"]
    search = TextSearch(TEXTS)
    scores = search.scores(search.queries([query, ""]))
    np.testing.assert_allclose(scores[0], index.get_scores(words), rtol=1e-5)
    assert scores[0].max() > 0
    assert not scores[1].any()


def test_the_sum_of_queries_is_a_query() -> None:
    search = TextSearch(TEXTS)
    one, two = search.queries(["red hat"]), search.queries(["wool"])
    np.testing.assert_allclose(search.scores(one + two), search.scores(search.queries(["hat wool red"])), rtol=1e-5)
    np.testing.assert_array_equal(search.counts.toarray(), search.queries(TEXTS).toarray())


def test_texts_without_words_score_zero() -> None:
    search = TextSearch(["", "-"])
    assert search.scores(search.queries(["red shoe"])).tolist() == [[0, 0]]
