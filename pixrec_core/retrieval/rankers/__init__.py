"""Rankers that let the language model write or read the next item's text: one module each, chosen by settings.

A ranker module has one function:

`make(catalogue: Catalogue, settings: GenerativeSettings) -> Ranker`
    prepares what is the same for all users. The ranker takes some users, and gives for each the
    items that it can tell apart, best first, each once, seen ones among them. Lists are completed
    by the dense order. The same users in the same batches give the same lists.

Its file name is its name in settings, files and the report. The likelihood of an item is the mean
log-probability of its text's tokens, as far as the towers read it, after the history: what L_NIG
trains. The end of a text is not among its labels, so it has no probability worth counting. An item
without a text has no likelihood.
"""

from pixrec_core.retrieval.rankers._contract import Catalogue, RankedItems, Ranker, UserBatch

__all__ = ["Catalogue", "RankedItems", "Ranker", "UserBatch"]
