"""Recommendations from a promoted checkpoint that is loaded into memory: `Recommender.load`, then `for_...`."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from PIL import Image

from pixrec_core.data.photos import PhotoError, normalise
from pixrec_core.data.sequences import Histories, read_items
from pixrec_core.errors import QueryError
from pixrec_core.paths import PromotedPaths, VariantPaths
from pixrec_core.retrieval.encode import Vectors
from pixrec_core.retrieval.retriever import Retriever
from pixrec_core.schemas import TITLE
from pixrec_core.serving.promotion import Promotion, read_promotion, verify_promotion

MAX_IDS_IN_ERROR = 5


class Recommendation(NamedTuple):
    """An item and its score: the cosine of its vector and the query's, -1 to 1."""

    item: str
    score: float


@dataclass(frozen=True)
class Recommender:
    """A promoted checkpoint with its index and catalogue.

    Every item of the catalogue is a candidate, also one that training never saw. `top` is the length of a list; a
    smaller catalogue gives shorter lists.

    Attributes:
        promotion: manifest of what serves.
        paths: of the promoted copies.
        retriever: the towers and the index.
    """

    promotion: Promotion
    paths: VariantPaths
    retriever: Retriever

    @classmethod
    def load(cls, folder: Path) -> "Recommender":
        """Load the promoted checkpoint from `data/<dataset>/variants/<variant>/promoted`.

        Raises:
            MissingArtefactError: nothing has been promoted there.
            ArtefactError: a file is damaged; the message names it.
        """
        paths = PromotedPaths(folder)
        promotion = read_promotion(paths)
        copies = verify_promotion(paths, promotion)
        return cls(promotion, copies, Retriever.load(copies))

    @cached_property
    def catalogue(self) -> pl.DataFrame:
        """All candidates: `CATALOGUE_SCHEMA`, sorted by item."""
        return read_items(self.paths.dataset)

    @cached_property
    def _histories(self) -> Histories:
        """Opened once, as opening takes several times as long as a query."""
        return Histories(self.paths.dataset)

    def history(self, user: str) -> list[str]:
        """All items of a user at the time of the promotion, oldest first.

        Raises:
            QueryError: the user is unknown.
        """
        items = self._histories.of(user)
        if not items:
            raise QueryError(
                f"unknown user {user!r}: {self.promotion.dataset} had no interactions of this user at "
                f"{self.promotion.promoted_at}; name some of the user's items instead"
            )
        return items

    def for_user(self, user: str, top: int = 10, *, filter_seen: bool = False) -> list[Recommendation]:
        """Next items for a user, after the user's whole history.

        Args:
            user: id.
            top: length of the list.
            filter_seen: leave out items of the history (protocol `seen_filtered`; else `seen_allowed`).

        Raises:
            QueryError: the user is unknown.
        """
        return self.for_items(self.history(user), top, filter_seen=filter_seen)

    def for_items(self, items: Sequence[str], top: int = 10, *, filter_seen: bool = False) -> list[Recommendation]:
        """Next items after a history, oldest item first.

        Raises:
            QueryError: the history is empty, or an item is unknown.
        """
        return self.for_histories([items], top, filter_seen=filter_seen)[0]

    def for_histories(
        self, histories: Sequence[Sequence[str]], top: int = 10, *, filter_seen: bool = False
    ) -> list[list[Recommendation]]:
        """Next items after each of many histories, in one batch, which is faster than one call per history.

        Raises:
            QueryError: a history is empty, or an item is unknown.
        """
        excluded = [set(history) if filter_seen else set() for history in histories]
        return self._nearest(self.user_vectors(histories), top, excluded)

    def user_vectors(self, histories: Sequence[Sequence[str]]) -> Vectors:
        """v_U of each history, oldest item first; queries for a vector database with the exported items.

        Returns:
            (B, D), of length 1. The inner product with an item's vector is the item's score.

        Raises:
            QueryError: a history is empty, or an item is unknown.
        """
        return self.retriever.encoder.user_vectors([self._item_numbers(history) for history in histories])

    def for_text(self, text: str, top: int = 10) -> list[Recommendation]:
        """The items most similar to an item with this title and nothing else.

        Raises:
            QueryError: the text is empty, or the variant reads no texts.
        """
        if not text.strip():
            raise QueryError("the text is empty; describe an item in some words")
        if self.promotion.variant == "image_only":
            raise QueryError("variant image_only reads no texts; query by a photo, or use another variant")
        return self._for_new_item({TITLE: text}, None, top)

    def for_photo(self, photo: bytes, top: int = 10) -> list[Recommendation]:
        """The items most similar to an item with this photo and nothing else.

        Args:
            photo: content of a file: JPEG, PNG, GIF, WEBP, AVIF, BMP or TIFF.
            top: length of the list.

        Raises:
            QueryError: the bytes are no usable photo, or the variant reads none.
        """
        if self.retriever.encoder.photos is None:
            raise QueryError(
                f"variant {self.promotion.variant} of {self.promotion.dataset} reads no photos; "
                "query by a text, or use another variant"
            )
        try:
            image = normalise(photo, self.promotion.photo_size, self.promotion.max_pixels)
        except PhotoError as error:
            raise QueryError(f"the photo cannot be used: {error}") from error
        return self._for_new_item({}, image, top)

    def _for_new_item(self, fields: Mapping[str, Any], photo: Image.Image | None, top: int) -> list[Recommendation]:
        vector = self.retriever.new_item_vector(fields, photo, self.promotion.variant)
        return self._nearest(vector, top, [set()])[0]

    def _nearest(self, vectors: Vectors, top: int, excluded: Sequence[Collection[str]]) -> list[list[Recommendation]]:
        """The `top` nearest items of each vector (B, D), without the items excluded from its list."""
        if top < 1:
            raise QueryError(f"top is {top}; it must be 1 or more")
        index = self.retriever.item_index
        k = min(top + max(map(len, excluded)), len(index.items))
        lists = []
        for rows, scores, without in zip(*(each.tolist() for each in index.nearest(vectors, k)), excluded, strict=True):
            ranked = (Recommendation(index.items[row], score) for row, score in zip(rows, scores, strict=True))
            lists.append(list(islice((each for each in ranked if each.item not in without), top)))
        return lists

    @cached_property
    def _number_of_item(self) -> dict[str, int]:
        return {item: number for number, item in enumerate(self.retriever.encoder.inputs.items)}

    def _item_numbers(self, history: Sequence[str]) -> list[int]:
        """Catalogue numbers of a history's items."""
        if not history:
            raise QueryError("the history is empty; name at least one item")
        numbers = self._number_of_item
        if unknown := [item for item in history if item not in numbers]:
            rest = f" and {len(unknown) - MAX_IDS_IN_ERROR:,} more" if len(unknown) > MAX_IDS_IN_ERROR else ""
            raise QueryError(
                f"unknown item {', '.join(map(repr, unknown[:MAX_IDS_IN_ERROR]))}{rest}: not among the "
                f"{len(numbers):,} of {self.promotion.dataset} at {self.promotion.promoted_at}; ids are those of "
                "column `item` of the dataset's items.parquet, and a newer item needs `pixrec run`"
            )
        return [numbers[item] for item in history]
