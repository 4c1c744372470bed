"""Generative rankers: the language model writes or scores the next item's text. One module per ranker.

A ranker module has one function:

`create_ranker(catalogue: Catalogue, settings: GenerativeSettings) -> Ranker`
    prepares whatever all users share. The ranker takes a batch of users and returns a list for each: the items that
    it can order, best first, each once, including items that the user already has. The dense order completes the
    lists. The same batches give the same lists.

The module's name is the ranker's name in settings, files and the report. The likelihood of an item is the mean
log-probability of its text's tokens after the history, which the loss L_NIG trains; tokens that the towers cut off do
not count. The end of a text is not among the labels, so its probability means nothing. An item without a text has no
likelihood.
"""

from pixrec_core.retrieval.rankers._interface import Catalogue, RankedItems, Ranker, UserBatch

__all__ = ["Catalogue", "RankedItems", "Ranker", "UserBatch"]
