"""Answers to requests, from a recommender.

Unlike `Recommender`, a request is lenient, because a shop has users and items that are newer than the promotion:
unknown items of a history are skipped and listed in the answer, and an unknown user counts as an empty history.
"""

from collections.abc import Callable, Sequence
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from pixrec_core.errors import QueryError
from pixrec_core.schemas import ITEM, TITLE, TRAIN_COUNT
from pixrec_core.serving.methods import BlendMethod
from pixrec_core.serving.recommender import Recommendation, Recommender
from pixrec_core.serving.server.schemas import Answer, Item, Question, RecommendedItem, Why

RANKED = 100  # items of each method's list in which an answer looks for its items

#: Counts what the promotion does not know: "user" or "item", and how many.
CountUnknown = Callable[[str, int], None]


def known_history(recommender: Recommender, user: str) -> tuple[list[str], list[int]]:
    """The items and times of a user; empty for an unknown one."""
    try:
        return recommender.history_with_times(user)
    except QueryError:
        return [], []


def answer_question(recommender: Recommender, question: Question, count_unknown: CountUnknown) -> Answer:
    """Return the answer to one question.

    Raises:
        QueryError: the method or an item of the rules is unknown, or no method reads texts.
    """
    if question.text is None:
        return answer_questions(recommender, [question], count_unknown)[0]
    found = recommender.for_text(question.text, question.top, method=question.method, rules=question.rules)
    return _build_answer(recommender, recommender.tower(question.method, "texts").variant, found)


def answer_questions(recommender: Recommender, questions: list[Question], count_unknown: CountUnknown) -> list[Answer]:
    """Answers to questions about users and histories, which have the same method, rules and length."""
    first, asked = questions[0], [_read_history(recommender, question, count_unknown) for question in questions]
    histories, times = [each.items for each in asked], [each.times for each in asked if each.times is not None]
    known_times = times if len(times) == len(asked) else None  # the blend reads the times of all histories or of none
    lists = recommender.for_histories(
        histories,
        first.top,
        times=known_times,
        same_visit=first.same_visit,
        method=first.method,
        rules=first.rules,
    )
    answers = []
    for question, history, found in zip(questions, asked, lists, strict=True):
        answer = _build_answer(recommender, question.method or recommender.promotion.method, found)
        answer.history_length, answer.unknown_items = len(history.items), history.unknown
        if question.explain:
            items, given = [each.item for each in found], history.times if known_times else None
            reasons = explain(recommender, history.items, items, times=given, method=question.method)
            for row, reason in zip(answer.items, reasons, strict=True):
                row.why = reason
        answers.append(answer)
    return answers


def explain(
    recommender: Recommender,
    history: Sequence[str],
    items: Sequence[str],
    *,
    times: Sequence[int] | None = None,
    method: str | None = None,
) -> list[Why]:
    """Return the reason of each recommended item.

    `times` are milliseconds since 1970 of each item of the `history`, which is oldest first.

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
    return [
        Why(nearest=item, similarity=cosine, ranks=rank) for (item, cosine), rank in zip(nearest, ranks, strict=True)
    ]


class _History(NamedTuple):
    """Items that the catalogue has, the time of each or None, and the items of the request that it lacks."""

    items: list[str]
    times: list[int] | None
    unknown: list[str]


def _read_history(recommender: Recommender, question: Question, count_unknown: CountUnknown) -> _History:
    """Return the history that a question is about."""
    if question.user is not None:
        items, times = known_history(recommender, question.user)
        count_unknown("user", int(not items))
        return _History(items, times, [])
    given = question.items or []
    known = [recommender.number_of(item) is not None for item in given]
    unknown = [item for item, is_known in zip(given, known, strict=True) if not is_known]
    count_unknown("item", len(unknown))
    given_times = None if question.times is None else list(compress(question.times, known))
    return _History(list(compress(given, known)), given_times, unknown)


def answer_photo(recommender: Recommender, photo: bytes, top: int, method: str | None) -> Answer:
    """Return the items most similar to a photo, given as the content of a file.

    Raises:
        QueryError: the photo cannot be read, or no method reads photos.
    """
    found = recommender.for_photo(photo, top, method=method)
    return _build_answer(recommender, recommender.tower(method, "photos").variant, found)


def answer_similar(recommender: Recommender, item: str, top: int, method: str | None) -> Answer:
    """Return the items nearest to one of the catalogue.

    Raises:
        QueryError: the item is unknown, or the method is no dual tower.
    """
    found = recommender.similar_items(item, top, method=method)
    return _build_answer(recommender, recommender.tower(method).variant, found)


def _build_answer(recommender: Recommender, method: str, found: list[Recommendation]) -> Answer:
    rows = catalogue_rows(recommender, [each.item for each in found])
    return Answer(
        dataset=recommender.promotion.dataset,
        method=method,
        promotion=recommender.promotion.number,
        items=[RecommendedItem(**Item.of(rows[item]).model_dump(), score=score) for item, score in found],
    )


def describe_items(recommender: Recommender, ids: list[str]) -> list[Item]:
    """Return the catalogue's description of each item."""
    rows = catalogue_rows(recommender, ids)
    return [Item.of(rows[each]) for each in ids]


def catalogue_rows(recommender: Recommender, ids: list[str]) -> dict[str, dict[str, Any]]:
    """Rows of the catalogue by item; unknown items lack."""
    numbers = [number for item in ids if (number := recommender.number_of(item)) is not None]
    return {row[ITEM]: row for row in recommender.catalogue[numbers].iter_rows(named=True)}


def find_catalogue_items(recommender: Recommender, search: str, limit: int) -> list[Item]:
    """Return items with all words of `search` in their id or title, the most popular first."""
    text = pl.concat_str(ITEM, TITLE, separator=" ", ignore_nulls=True).str.to_lowercase()
    found = recommender.catalogue
    for word in dict.fromkeys(search.lower().split()):
        found = found.filter(text.str.contains(word, literal=True))
    return [
        Item.of(row)
        for row in found.sort(TRAIN_COUNT, ITEM, descending=[True, False]).head(limit).iter_rows(named=True)
    ]
