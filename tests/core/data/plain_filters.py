"""Reference filters of interactions in plain Python, in another order than the product's."""

import itertools
from collections import Counter

from pixrec_core.settings import SequenceSettings
from tests.core.data.sequence_inputs import Row

Event = tuple[int, int, str]  # timestamp, position, item
Histories = dict[str, list[Event]]


def usable(rows: list[Row], known: str, wanted: SequenceSettings) -> Histories:
    """Return users' events after the filters of single rows and of consecutive repeats."""
    histories: Histories = {}
    for position, (user, item, timestamp, rating) in enumerate(rows, start=1):
        if item in known and not (rating is not None and rating < wanted.min_rating):
            histories.setdefault(user, []).append((timestamp, position, item))
    histories = {user: sorted(events) for user, events in histories.items()}
    return collapsed(histories) if wanted.collapse_repeats else histories


def collapsed(histories: Histories) -> Histories:
    return {u: [next(run) for _, run in itertools.groupby(w, key=lambda event: event[2])] for u, w in histories.items()}


def core(histories: Histories, wanted: SequenceSettings) -> Histories:
    """Return the k-core: drop users and items with too few events until all have enough."""
    before = None
    while histories != before:
        before = histories
        histories = {user: events for user, events in histories.items() if len(events) >= wanted.min_user_interactions}
        counts = Counter(item for events in histories.values() for *_, item in events)
        histories = {u: [e for e in w if counts[e[2]] >= wanted.min_item_interactions] for u, w in histories.items()}
        histories = collapsed(histories) if wanted.collapse_repeats else histories
    return histories
