"""Text alone: BM25 of each item's text for the texts of the history as the query.

Nothing is learnt of who bought what with what, so a new item is served as well as an old one.
"""

from collections.abc import Sequence

import bm25s
import numpy as np
from scipy import sparse

from pixrec_core.baselines._contract import Fitted, Knowledge
from pixrec_core.baselines._item_lists import ItemLists
from pixrec_core.baselines._neighbours import Likeness, fit_content


def fit(knowledge: Knowledge) -> Fitted:
    """Index the texts once; how the history's items weigh in the query is chosen on validation targets."""
    return fit_content(_likeness(knowledge.texts), knowledge)


def _likeness(texts: Sequence[str]) -> Likeness:
    """BM25 (Lucene's, k1 1.5, b 0.75) of all texts for weighted sums of texts as queries."""
    tokens = bm25s.tokenize(list(texts), show_progress=False)
    if not tokens.vocab:
        return lambda histories: np.zeros(histories.shape, np.float32)
    index = bm25s.BM25()
    index.index(tokens, create_empty_token=False, show_progress=False)
    shape = (len(texts), len(tokens.vocab))
    # BM25 is a sum over the query's words, so a query of several texts is a sum of rows.
    gain = sparse.csc_array((index.scores["data"], index.scores["indices"], index.scores["indptr"]), shape=shape)
    words = ItemLists.from_lists(tokens.ids)
    queries = words.matrix(shape[1], np.ones(len(words.values), np.float32))
    return lambda histories: (histories @ queries @ gain.T).toarray()
