"""Recommendations by a promoted checkpoint, in memory and ready: `Recommender.load`, then `for_...`."""

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
from pixrec_core.retrieval import encode
from pixrec_core.retrieval.retriever import Retriever
from pixrec_core.schemas import TITLE
from pixrec_core.serving import promoted
from pixrec_core.serving.promoted import Promotion

TOLD = 5  # unknown ids that an error names


class Recommendation(NamedTuple):
    """An item and its score: the cosine of its vector and the query's, -1 to 1."""

    item: str
    score: float


@dataclass(frozen=True)
class Recommender:
    """A promoted checkpoint with its index and catalogue.

    Every item of the catalogue is a candidate, cold ones too. `top` is how many are wanted; fewer come
    from a smaller catalogue.

    Attributes:
        promotion: what serves.
        paths: of the copies.
        shop: the towers, what they read, and the index over the item vectors.
    """

    promotion: Promotion
    paths: VariantPaths
    retriever: Retriever

    @classmethod
    def load(cls, folder: Path) -> "Recommender":
        """Read what serves, from `data/<dataset>/variants/<variant>/promoted`.

        Raises:
            MissingArtefactError: nothing has been promoted there.
            ArtefactError: some of it is damaged; the file is named.
        """
        paths = PromotedPaths(folder)
        promotion = promoted.read(paths)
        copies = promoted.verify(paths, promotion)
        return cls(promotion, copies, Retriever.load(copies))

    @cached_property
    def catalogue(self) -> pl.DataFrame:
        """All items that may be recommended: `CATALOGUE_SCHEMA`, sorted by item."""
        return read_items(self.paths.dataset)

    @cached_property
    def _histories(self) -> Histories:
        """Opened once: opening takes several times as long as an answer."""
        return Histories(self.paths.dataset)

    def history(self, user: str) -> list[str]:
        """All that a user had when this checkpoint was promoted, oldest first.

        Raises:
            QueryError: the user is unknown.
        """
        items = self._histories.of(user)
        if not items:
            raise QueryError(
                f"unknown user {user!r}: {self.promotion.dataset} had none of theirs at {self.promotion.promoted_at}; "
                "name some of their items instead"
            )
        return items

    def for_user(self, user: str, top: int = 10, *, filter_seen: bool = False) -> list[Recommendation]:
        """What comes next after all that a user had.

        Args:
            user: id.
            top: items wanted.
            filter_seen: leave out what the user had (protocol `seen_filtered`; else `seen_allowed`).

        Raises:
            QueryError: the user is unknown.
        """
        return self.for_items(self.history(user), top, filter_seen=filter_seen)

    def for_items(self, items: Sequence[str], top: int = 10, *, filter_seen: bool = False) -> list[Recommendation]:
        """What comes next after a history, oldest item first.

        Raises:
            QueryError: there is no item, or one is unknown.
        """
        return self.for_histories([items], top, filter_seen=filter_seen)[0]

    def for_histories(
        self, histories: Sequence[Sequence[str]], top: int = 10, *, filter_seen: bool = False
    ) -> list[list[Recommendation]]:
        """What comes next after each of many histories: faster than one after the other.

        Raises:
            QueryError: a history is empty, or an item is unknown.
        """
        left_out = [set(history) if filter_seen else set() for history in histories]
        return self._nearest(self.user_vectors(histories), top, left_out)

    def user_vectors(self, histories: Sequence[Sequence[str]]) -> encode.Vectors:
        """v_U of each history, oldest item first: what to ask a vector database that has the exported items.

        Returns:
            (B, D), of length 1. The inner product with an item's vector is the item's score.

        Raises:
            QueryError: a history is empty, or an item is unknown.
        """
        return self.retriever.encoder.user_vectors([self._numbers(history) for history in histories])

    def for_text(self, text: str, top: int = 10) -> list[Recommendation]:
        """The items nearest to one of which only the title is known.

        Raises:
            QueryError: the text is empty, or the variant reads no texts.
        """
        if not text.strip():
            raise QueryError("the text is empty; describe an item in some words")
        if self.promotion.variant == "image_only":
            raise QueryError("variant image_only reads no texts; ask by a photo, or another variant")
        return self._for_item({TITLE: text}, None, top)

    def for_photo(self, photo: bytes, top: int = 10) -> list[Recommendation]:
        """The items nearest to one of which only a photo is known.

        Args:
            photo: content of a file: JPEG, PNG, GIF, WEBP, AVIF, BMP or TIFF.
            top: items wanted.

        Raises:
            QueryError: the bytes are no photo that can be used, or the variant reads none.
        """
        if self.retriever.encoder.photos is None:
            raise QueryError(
                f"variant {self.promotion.variant} of {self.promotion.dataset} reads no photos; "
                "ask by a text, or another variant"
            )
        try:
            picture = normalise(photo, self.promotion.photo_size, self.promotion.max_pixels)
        except PhotoError as error:
            raise QueryError(f"the photo cannot be used: {error}") from error
        return self._for_item({}, picture, top)

    def _for_item(self, known: Mapping[str, Any], photo: Image.Image | None, top: int) -> list[Recommendation]:
        vector = self.retriever.new_item_vector(known, photo, self.promotion.variant)
        return self._nearest(vector, top, [set()])[0]

    def _nearest(
        self, vectors: encode.Vectors, top: int, left_out: Sequence[Collection[str]]
    ) -> list[list[Recommendation]]:
        """The `top` nearest items of each vector (B, D) without those left out of its list."""
        if top < 1:
            raise QueryError(f"top is {top}; it must be 1 or more")
        most = max(len(items) for items in left_out)
        items = self.retriever.item_index.items
        rows, cosines = self.retriever.item_index.nearest(vectors, min(top + most, len(items)))
        lists = []
        for own, scores, without in zip(rows.tolist(), cosines.tolist(), left_out, strict=True):
            ranked = (Recommendation(items[n], score) for n, score in zip(own, scores, strict=True))
            lists.append(list(islice((each for each in ranked if each.item not in without), top)))
        return lists

    @cached_property
    def _number(self) -> dict[str, int]:
        return {item: n for n, item in enumerate(self.retriever.encoder.inputs.items)}

    def _numbers(self, history: Sequence[str]) -> list[int]:
        """Item numbers of a history."""
        if not history:
            raise QueryError("a history holds no item; name one at least")
        if unknown := [item for item in history if item not in self._number]:
            rest = f" and {len(unknown) - TOLD:,} more" if len(unknown) > TOLD else ""
            raise QueryError(
                f"unknown item {', '.join(map(repr, unknown[:TOLD]))}{rest}: not among the {len(self._number):,} "
                f"of {self.promotion.dataset} at {self.promotion.promoted_at}; ids are those of column `item` of its "
                "items.parquet, and an item that came later needs `pixrec run`"
            )
        return [self._number[item] for item in history]
