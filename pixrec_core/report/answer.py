"""One query and the items that answer it, for other programs or as a page with pictures.

Like the report, the page needs nothing beside itself, and whatever titles hold is escaped.
"""

import json
from dataclasses import dataclass
from typing import Any, Literal

from pixrec_core.data.photos import normalise
from pixrec_core.paths import DatasetPaths
from pixrec_core.report import tables
from pixrec_core.report.inputs import titles_of
from pixrec_core.report.pictures import EDGE, HISTORY, Album, data_uri
from pixrec_core.report.templating import environment
from pixrec_core.serving import Recommendation, Recommender


@dataclass(frozen=True)
class Query:
    """What is asked by.

    Attributes:
        kind: of the question.
        told: the user, the text, or the photo's name; for items, their ids joined by commas.
        photo: content of the photo's file.
    """

    kind: Literal["user", "items", "text", "photo"]
    told: str
    photo: bytes = b""


@dataclass(frozen=True)
class Answer:
    """A query, the history that it stands for (oldest first, none for a text or photo), and the items found."""

    recommender: Recommender
    query: Query
    history: list[str]
    found: list[Recommendation]
    titles: dict[str, str]

    def rows(self) -> list[dict[str, Any]]:
        """One row an item: rank, item, title, score."""
        return [
            {"rank": rank, "item": item, "title": self.titles[item], "score": score}
            for rank, (item, score) in enumerate(self.found, start=1)
        ]


def ask(recommender: Recommender, query: Query, top: int, *, filter_seen: bool) -> Answer:
    """Answer a query.

    Raises:
        QueryError: what is asked by is unknown, or cannot be read.
    """
    history: list[str] = []
    if query.kind == "text":
        found = recommender.for_text(query.told, top)
    elif query.kind == "photo":
        found = recommender.for_photo(query.photo, top)
    else:
        known = query.kind == "user"
        history = recommender.history(query.told) if known else [i.strip() for i in query.told.split(",") if i.strip()]
        found = recommender.for_items(history, top, filter_seen=filter_seen)
    return Answer(recommender, query, history, found, titles_of(recommender.catalogue))


def as_json(answer: Answer) -> str:
    """The answer as one JSON object."""
    promotion = answer.recommender.promotion
    told = {
        "dataset": promotion.dataset,
        "variant": promotion.variant,
        "promoted_at": promotion.promoted_at,
        "query": {answer.query.kind: answer.query.told, "history": answer.history},
        "recommendations": answer.rows(),
    }
    return json.dumps(told, indent=2, ensure_ascii=False)


def as_html(answer: Answer, paths: DatasetPaths) -> str:
    """The answer as a page.

    Args:
        answer: to show.
        paths: of the dataset, whose photos are shown.
    """
    album, promotion = Album(paths, answer.titles), answer.recommender.promotion
    photo = normalise(answer.query.photo, EDGE, promotion.max_pixels) if answer.query.kind == "photo" else None
    seen = set(answer.history)
    context = {
        "promotion": promotion,
        "variant": tables.label(promotion.variant),
        "query": answer.query,
        "photo": data_uri(photo) if photo else None,
        "history": [album.tile(item) for item in answer.history[-HISTORY:]],
        "earlier": max(0, len(answer.history) - HISTORY),
        "found": [album.tile(each.item, seen=each.item in seen) for each in answer.found],
        "rows": answer.rows(),
    }
    return environment().get_template("answer.html").render(context)
