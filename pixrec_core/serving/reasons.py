"""Reasons of recommendations: the nearest item of the history, and the ranks that other methods give."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pixrec_core.serving.methods import BlendMethod
from pixrec_core.serving.recommender import Recommender

RANKED = 100  # items of each method's list that are looked at


@dataclass(frozen=True)
class Reason:
    """Why an item is recommended.

    Attributes:
        nearest: item of the history with the highest cosine by the best dual tower; None without a tower or history.
        similarity: that cosine, -1 to 1.
        ranks: position from 1 in the list of each method that the answer is made from; methods without the item lack.
    """

    nearest: str | None
    similarity: float | None
    ranks: Mapping[str, int]


def explain(
    recommender: Recommender,
    history: Sequence[str],
    items: Sequence[str],
    *,
    times: Sequence[int] | None = None,
    method: str | None = None,
) -> list[Reason]:
    """Return the reason of each recommended item.

    Args:
        recommender: that recommended.
        history: item ids, oldest first.
        items: recommended item ids.
        times: milliseconds since 1970 of each item of the history.
        method: that answered; by default the one that serves.

    Raises:
        QueryError: an item or the method is unknown.
    """
    if not items:
        return []
    lists = recommender.item_lists([history], None if times is None else [times])
    wanted = recommender.item_lists([items]).values
    nearest: list[tuple[str | None, float | None]] = [(None, None)] * len(items)
    if history and recommender.promotion.towers:
        vectors = recommender.tower().retriever.item_index.vectors
        cosines = vectors[wanted] @ vectors[lists.values].T
        best = cosines.argmax(axis=1)
        nearest = [(history[at], float(row[at])) for at, row in zip(best.tolist(), cosines, strict=True)]
    name = recommender.promotion.require_method(method or recommender.promotion.method)
    answering = recommender.method(name)
    voters = answering.methods if isinstance(answering, BlendMethod) else {name: answering}
    ranks: list[dict[str, int]] = [{} for _ in items]
    for voter, each in voters.items():
        ranked, _ = each.candidates(lists, min(RANKED, each.n_items))
        for reason, found in zip(ranks, ranked[0] == wanted[:, None], strict=True):
            if found.any():
                reason[voter] = int(np.argmax(found)) + 1
    return [Reason(item, cosine, rank) for (item, cosine), rank in zip(nearest, ranks, strict=True)]
