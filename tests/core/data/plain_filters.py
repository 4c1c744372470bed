"""Filters of interactions in plain Python, in another order than the product's, for tests to hold it against."""

import itertools
from collections import Counter

from pixrec_core.settings import SequenceSettings
from tests.core.data.sequence_inputs import Row

Event = tuple[int, int, str]  # timestamp, position, item
Walks = dict[str, list[Event]]


def usable(rows: list[Row], known: str, wanted: SequenceSettings) -> Walks:
    """What each row alone, and the row just before it, decide."""
    walks: Walks = {}
    for position, (user, item, timestamp, rating) in enumerate(rows, start=1):
        if item in known and not (rating is not None and rating < wanted.min_rating):
            walks.setdefault(user, []).append((timestamp, position, item))
    walks = {user: sorted(walk) for user, walk in walks.items()}
    return collapsed(walks) if wanted.collapse_repeats else walks


def collapsed(walks: Walks) -> Walks:
    return {u: [next(run) for _, run in itertools.groupby(w, key=lambda event: event[2])] for u, w in walks.items()}


def core(walks: Walks, wanted: SequenceSettings) -> Walks:
    """What is left when users and items with too few interactions are gone, and those whom that leaves with too few."""
    before = None
    while walks != before:
        before = walks
        walks = {user: walk for user, walk in walks.items() if len(walk) >= wanted.min_user_interactions}
        counts = Counter(item for walk in walks.values() for *_, item in walk)
        walks = {u: [e for e in w if counts[e[2]] >= wanted.min_item_interactions] for u, w in walks.items()}
        walks = collapsed(walks) if wanted.collapse_repeats else walks
    return walks
