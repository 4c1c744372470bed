"""Text alone: BM25 of each item's text for the texts of the history as the query.

Nothing is learnt of who bought what with what, so a new item is served as well as an old one.
"""

from pixrec_core.baselines._contract import FittedModel, TrainData
from pixrec_core.baselines._neighbours import fit_content
from pixrec_core.data.text_search import TextSearch


def fit(train_data: TrainData) -> FittedModel:
    """Index the texts once; how the history's items weigh in the query is chosen on validation targets."""
    search = TextSearch(train_data.texts)
    return fit_content(lambda histories: search.scores(histories @ search.counts), train_data)
