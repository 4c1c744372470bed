"""The answer to one query; `answer_page` makes a page of it."""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pixrec_core.errors import QueryError
from pixrec_core.printable import printable_json
from pixrec_core.report.inputs import titles_of
from pixrec_core.schemas import clean_id
from pixrec_core.serving import Recommendation, Recommender


@dataclass(frozen=True)
class Query:
    """A query to a recommender.

    `value` is the user, the text, the file name of the photo, or item ids joined by commas, which may contain commas.
    `photo` is the content of the photo file.
    """

    kind: Literal["user", "items", "text", "photo"]
    value: str
    photo: bytes = b""


@dataclass(frozen=True)
class Answer:
    """A query, its history (oldest first; empty for a text or photo), and the recommended items, best first.

    `method` is the method that answers.
    """

    recommender: Recommender
    method: str
    query: Query
    history: list[str]
    recommendations: list[Recommendation]
    titles: dict[str, str]

    def rows(self) -> list[dict[str, Any]]:
        """One row per recommended item: rank, item, title, and score, which is None for a pinned item."""
        return [
            {"rank": rank, "item": item, "title": self.titles[item], "score": None if math.isnan(score) else score}
            for rank, (item, score) in enumerate(self.recommendations, start=1)
        ]


def answer_query(
    recommender: Recommender, query: Query, top: int, *, filter_seen: bool, method: str | None = None
) -> Answer:
    """The `top` items that answer a query, by `method`.

    By default the serving method answers, or the best one that reads the text or photo.

    Raises:
        QueryError: the user, an item, the method, the text or the photo is unknown or invalid.
    """
    history: list[str] = []
    titles = titles_of(recommender.catalogue)
    if query.kind == "text":
        recommendations = recommender.for_text(query.value, top, method=method)
        method = recommender.tower(method, "texts").variant
    elif query.kind == "photo":
        recommendations = recommender.for_photo(query.photo, top, method=method)
        method = recommender.tower(method, "photos").variant
    elif query.kind == "user":
        history = recommender.history(query.value)
        recommendations = recommender.for_user(query.value, top, filter_seen=filter_seen, method=method)
    else:
        history = list(_split_ids(query.value, titles))
        if not history:
            raise QueryError("the history is empty; name at least one item")
        recommendations = recommender.for_items(history, top, filter_seen=filter_seen, method=method)
    method = method or recommender.promotion.method
    return Answer(recommender, method, query, history, recommendations, titles)


def _split_ids(joined: str, known: Collection[str]) -> Iterator[str]:
    """Yield ids that were joined by commas: always the longest known one, else the text up to the next comma."""
    parts, most = joined.split(","), 1 + max((each.count(",") for each in known), default=0)
    while parts:
        ends = range(min(len(parts), most), 1, -1)
        end = next((end for end in ends if clean_id(",".join(parts[:end])) in known), 1)
        if item := clean_id(",".join(parts[:end])):
            yield item
        parts = parts[end:]


def as_json(answer: Answer) -> str:
    """The answer as one JSON object."""
    promotion = answer.recommender.promotion
    record = {
        "dataset": promotion.dataset,
        "method": answer.method,
        "promoted_at": promotion.promoted_at,
        "query": {answer.query.kind: answer.query.value, "history": answer.history},
        "recommendations": answer.rows(),
    }
    return printable_json(record)
