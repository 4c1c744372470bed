"""Bodies of requests and answers."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from fastapi import HTTPException
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pixrec_core.data.interactions import MAX_TIMESTAMP
from pixrec_core.schemas import CATEGORIES, HAS_IMAGE, ITEM, PRICE, STORE, TITLE
from pixrec_core.serving.recommender import Recommender
from pixrec_core.settings import CandidateRules

MAX_TEXT = 2000  # characters of a text query
MAX_HISTORY = 10_000  # items of a history


class ListOptions(BaseModel):
    """What a request may say about its lists, whatever it asks."""

    top: int = Field(10, ge=1, description="length of each list")
    method: str | None = Field(None, description="method that answers; by default the one that serves")
    rules: CandidateRules = Field(CandidateRules(), description="candidate rules of this request")
    same_visit: bool = Field(False, description="whether the newest items are of this visit, as in a basket")


class Question(ListOptions):
    """Exactly one of `user`, `items` and `text`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"user": "4711", "top": 5},
                {"items": ["sku-1", "sku-7"], "method": "ease", "rules": {"filter_seen": True, "max_price": 50}},
                {"text": "red wool hat"},
            ]
        },
    )

    user: str | None = Field(None, description="user id; the history is that of the promotion")
    items: list[str] | None = Field(None, max_length=MAX_HISTORY, description="history of item ids, oldest first")
    times: list[Annotated[int, Field(ge=-MAX_TIMESTAMP, le=MAX_TIMESTAMP)]] | None = Field(
        None, max_length=MAX_HISTORY, description="milliseconds since 1970 of each of `items`; may be left out"
    )
    text: str | None = Field(None, min_length=1, max_length=MAX_TEXT, description="words of a title")
    explain: bool = Field(False, description="whether each item has its reason; costs about one more query")

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if sum(each is not None for each in (self.user, self.items, self.text)) != 1:
            raise ValueError("give exactly one of user, items and text")
        if self.times is not None and len(self.times) != len(self.items or ()):
            raise ValueError("give one time per item of `items`")
        return self

    def check(self, max_top: int) -> None:
        """Raise HTTPException 422 if the list would be longer than the server allows."""
        if self.top > max_top:
            raise HTTPException(422, f"top is {self.top}; at most {max_top:,} (server.max_top)")


class Batch(ListOptions):
    """Either `users` or `histories`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"users": ["4711", "4712"], "top": 5}, {"histories": [["sku-1"]]}]},
    )

    users: list[str] | None = Field(None, min_length=1, description="user ids")
    histories: list[Annotated[list[str], Field(max_length=MAX_HISTORY)]] | None = Field(
        None, min_length=1, description="histories of item ids, oldest first"
    )

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if (self.users is None) == (self.histories is None):
            raise ValueError("give either users or histories")
        return self

    def questions(self, max_batch: int, max_top: int) -> list[Question]:
        """One question per user or history.

        Raises:
            HTTPException: 422 if there are more, or the lists are longer, than the server allows.
        """
        count = len(self.users or self.histories or ())
        if count > max_batch:
            raise HTTPException(422, f"{count:,} histories in one batch; at most {max_batch:,} (server.max_batch)")
        shared: dict[str, Any] = {name: getattr(self, name) for name in ListOptions.model_fields}
        if self.users is not None:
            questions = [Question(user=user, **shared) for user in self.users]
        else:
            questions = [Question(items=items, **shared) for items in self.histories or ()]
        questions[0].check(max_top)
        return questions


class Item(BaseModel):
    """An item of the catalogue."""

    item: str
    title: str
    brand: str | None
    price: float | None
    categories: list[str]
    photo: bool = Field(description="whether /items/photo has one")

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Item":
        """From a row of `CATALOGUE_SCHEMA`."""
        return cls(
            item=row[ITEM],
            title=row[TITLE] or "",
            brand=row[STORE] or None,
            price=row[PRICE],
            categories=row[CATEGORIES] or [],
            photo=bool(row[HAS_IMAGE]),
        )


class Why(BaseModel):
    """The reason of a recommendation."""

    nearest: str | None = Field(description="most similar item of the history, by text and photo")
    similarity: float | None = Field(description="its cosine, -1 to 1")
    ranks: dict[str, int] = Field(description="position in the list of each method, from 1; among the first 100")


class RecommendedItem(Item):
    """An item of a list."""

    score: float | None = Field(
        description="by the method that answers; scores compare within one list; null if pinned"
    )
    why: Why | None = None


class Answer(BaseModel):
    """A list of items, best first."""

    dataset: str
    method: str = Field(description="method that answered")
    promotion: int = Field(description="number of the promotion")
    history_length: int = Field(0, description="items of the history that counted; 0: the popularity order")
    unknown_items: list[str] = Field([], description="items of the request that the promotion does not know; skipped")
    items: list[RecommendedItem]


class BatchAnswer(BaseModel):
    """One answer per user or history, in the order of the request."""

    answers: list[Answer]


class DatasetInfo(BaseModel):
    """What serves a dataset."""

    dataset: str
    method: str = Field(description="method that serves")
    promotion: int
    promoted_at: str = Field(description="UTC; of the last promotion, refit or refresh")
    trained_at: str = Field(description="UTC; when the methods were trained and measured")
    refitted_at: dict[str, str] = Field(description="UTC by method; when it was fitted on all interactions since")
    methods: dict[str, float | None] = Field(description="methods that can be asked, with NDCG@10 on validation users")
    towers: tuple[str, ...] = Field(description="methods that answer texts or photos, best first")
    items: int = Field(description="size of the catalogue")

    @classmethod
    def of(cls, recommender: Recommender) -> "DatasetInfo":
        """From a loaded recommender."""
        promotion = recommender.promotion
        return cls(
            dataset=promotion.dataset,
            method=promotion.method,
            promotion=promotion.number,
            promoted_at=promotion.promoted_at,
            trained_at=promotion.trained_at,
            refitted_at=promotion.refitted_at,
            methods=promotion.methods,
            towers=promotion.towers,
            items=recommender.catalogue.height,
        )
