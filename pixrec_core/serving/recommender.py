"""Recommendations from promoted methods that are loaded into memory: `Recommender.load`, then `for_...`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from itertools import chain, pairwise
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image

from pixrec_core.data.decoding import decode_photo
from pixrec_core.data.photos import PhotoError
from pixrec_core.data.sequences import Histories, read_items
from pixrec_core.errors import ArtefactError, PixRecError, QueryError
from pixrec_core.paths import BLEND, DatasetPaths, PromotedPaths
from pixrec_core.recommenders import load_model
from pixrec_core.recommenders.base import ItemLists, Method
from pixrec_core.recommenders.blend import Blend
from pixrec_core.schemas import ITEM, TITLE, clean_id
from pixrec_core.serving.methods import BlendMethod, Tower
from pixrec_core.serving.promotion import SHARED, Promotion, parts_of_method, read_promotion, verify_promotion
from pixrec_core.serving.rules import ItemRules, warn_of_unknown_categories
from pixrec_core.settings import CandidateRules

if TYPE_CHECKING:
    from pixrec_core.retrieval.encode import Vectors

MAX_IDS_IN_ERROR = 5
MAX_RELOADS: Final = 20  # promotions during one `load`
NO_RULES: Final = CandidateRules()
RULES_CACHED: Final = 8  # different rules; each takes about 17 bytes per item
#: Variants that lack one of the two.
READS_NO: Final = {"text_only": "photos", "image_only": "texts"}


class Recommendation(NamedTuple):
    """An item and its score by the method that answers; scores compare within one list only.

    A tower's score is the cosine of the vectors of item and query, -1 to 1; for items of the history plus its
    `seen_offset`. A pinned item has the score NaN.
    """

    item: str
    score: float


@dataclass(frozen=True)
class Recommender:
    """The promoted methods of a dataset, and its catalogue.

    Every item of the catalogue is a candidate, also one that training never saw. `top` is the length of a list; a
    smaller catalogue gives shorter lists. `method` names a promoted method; by default the one that serves answers. A
    method other than that one is loaded when it is first asked. `rules` of a query hold together with those of the
    recommender.

    Attributes:
        promotion: manifest of what serves.
        folder: the promoted folder.
        paths: of the promoted copies.
        rules: that hold for every query.
    """

    promotion: Promotion
    folder: PromotedPaths
    paths: DatasetPaths
    rules: CandidateRules = NO_RULES
    _methods: dict[str, Method] = field(default_factory=dict)
    _lock: RLock = field(default_factory=RLock)

    @classmethod
    def load(cls, folder: Path, rules: CandidateRules = NO_RULES) -> "Recommender":
        """Load the method that serves from `data/<dataset>`, or from its folder `promoted`.

        Promotions may replace the copy while it is read; then the next one is loaded.

        Raises:
            MissingArtefactError: nothing has been promoted there.
            ArtefactError: a file is damaged; the message names it.
        """
        return cls._open(folder, lambda recommender: recommender._keep(), rules)

    @classmethod
    def open(cls, folder: Path, rules: CandidateRules = NO_RULES) -> "Recommender":
        """Open `data/<dataset>`, or its folder `promoted`, without loading a method, for a single query.

        Raises:
            MissingArtefactError: nothing has been promoted there.
            ArtefactError: the catalogue or the histories are damaged; the message names the file.
        """
        return cls._open(folder, lambda _: None, rules)

    @classmethod
    def _open(cls, folder: Path, prepare: Callable[["Recommender"], None], rules: CandidateRules) -> "Recommender":
        """Open and prepare the copy that serves, or the next one if a promotion replaces it meanwhile."""
        paths = PromotedPaths(folder)
        if not paths.manifest.exists() and folder.name != "promoted":
            paths = PromotedPaths(folder / "promoted")
        for _ in range(MAX_RELOADS):
            promotion = read_promotion(paths)
            recommender = cls(promotion, paths, paths.copies(promotion.number), rules)
            try:
                verify_promotion(paths, promotion, SHARED)
                prepare(recommender)
            except Exception as error:
                if read_promotion(paths) == promotion:
                    raise _documented(error, recommender.paths.root) from error
            else:
                return recommender
        raise ArtefactError(f"{folder} was promoted {MAX_RELOADS} times while it was being loaded; load it again")

    def _keep(self) -> None:
        """Load what queries by the serving method read, so that they work when the copy is deleted."""
        _ = self.method(), self.catalogue, self._histories, self._apply_rules

    def method(self, name: str | None = None) -> Method:
        """Return a promoted method, loaded once; by default the one that serves.

        Raises:
            QueryError: the method is unknown.
            ArtefactError: a file of it is damaged, or later promotions have replaced it.
        """
        name = self.promotion.require_method(name or self.promotion.method)
        if (loaded := self._methods.get(name)) is not None:  # without the lock: another method may be loading
            return loaded
        with self._lock:
            if name not in self._methods:
                try:
                    self._methods[name] = self._load(name)
                except Exception as error:
                    raise _documented(error, self.paths.root) from error
            return self._methods[name]

    def _load(self, name: str) -> Method:
        verify_promotion(self.folder, self.promotion, parts_of_method(self.promotion, name))
        if name == BLEND:
            blend = Blend.load(self.paths.blend.root)
            return BlendMethod.of(blend, {each: self.method(each) for each in blend.methods})
        if name in self.promotion.towers:
            return Tower.load(self.paths, name)
        return load_model(self.paths.baseline(name).model)

    def tower(self, name: str | None = None, reads: Literal["texts", "photos"] | None = None) -> Tower:
        """Return a dual tower; by default the best on validation of those that read texts or photos.

        Raises:
            QueryError: no such method has been promoted, or it does not read what is asked.
        """
        able = [each for each in self.promotion.towers if reads is None or READS_NO.get(each) != reads]
        if name is not None:
            self.promotion.require_method(name)
        chosen = name or next(iter(able), None)
        tower = self.method(chosen) if chosen in able else None
        if not isinstance(tower, Tower) or (reads == "photos" and not tower.retriever.reads_photos):
            subject = f"method {name}" if name else "no promoted method"
            raise QueryError(
                f"{subject} of {self.promotion.dataset} reads {'no' if name else 'any'} {reads or 'texts or photos'}; "
                f"{'leave out the method' if name and able else 'query by a history'}, or query by another input"
            )
        return tower

    @cached_property
    def catalogue(self) -> pl.DataFrame:
        """All candidates: `CATALOGUE_SCHEMA`, sorted by item."""
        return read_items(self.paths)

    @cached_property
    def _histories(self) -> Histories:
        """Opened once, as opening takes several times as long as a query."""
        return Histories(self.paths)

    def history(self, user: str) -> list[str]:
        """All items of a user at the time of the promotion, oldest first.

        Raises:
            QueryError: the user is unknown.
        """
        return self.history_with_times(user)[0]

    def history_with_times(self, user: str) -> tuple[list[str], list[int]]:
        """All items of a user, and the time of each in milliseconds since 1970.

        Raises:
            QueryError: the user is unknown.
        """
        items, times = self._histories.of(user)
        if not items:
            raise QueryError(
                f"unknown user {user!r}: {self.promotion.dataset} had no interactions of this user at "
                f"{self.promotion.promoted_at}; name some of the user's items instead"
            )
        return items, times

    def find_users(self, start: str, count: int) -> list[str]:
        """The first `count` users, in order, whose id begins with `start`."""
        return self._histories.find_users(start, count)

    def for_user(
        self,
        user: str,
        top: int = 10,
        *,
        filter_seen: bool = False,
        same_visit: bool = False,
        method: str | None = None,
        rules: CandidateRules = NO_RULES,
    ) -> list[Recommendation]:
        """Next items for a user, after the user's whole history.

        Args:
            user: id.
            top: length of the list.
            filter_seen: leave out items of the history (protocol `seen_filtered`; else `seen_allowed`).
            same_visit: see `for_histories`.
            method: that answers.
            rules: of this query.

        Raises:
            QueryError: the user, the method or an item in the rules is unknown.
        """
        items, times = self.history_with_times(user)
        return self.for_histories(
            [items],
            top,
            times=[times],
            filter_seen=filter_seen,
            same_visit=same_visit,
            method=method,
            rules=rules,
        )[0]

    def for_items(
        self,
        items: Sequence[str],
        top: int = 10,
        *,
        filter_seen: bool = False,
        same_visit: bool = False,
        method: str | None = None,
        rules: CandidateRules = NO_RULES,
    ) -> list[Recommendation]:
        """Next items after a history, oldest item first; after an empty one the popularity order.

        See `for_histories`.

        Raises:
            QueryError: an item or the method is unknown.
        """
        return self.for_histories(
            [items], top, filter_seen=filter_seen, same_visit=same_visit, method=method, rules=rules
        )[0]

    def for_histories(
        self,
        histories: Sequence[Sequence[str]],
        top: int = 10,
        *,
        times: Sequence[Sequence[int]] | None = None,
        filter_seen: bool = False,
        same_visit: bool = False,
        method: str | None = None,
        rules: CandidateRules = NO_RULES,
    ) -> list[list[Recommendation]]:
        """Next items after each of many histories, in one batch, which is faster than one call per history.

        Args:
            histories: item ids, oldest first.
            top: length of each list.
            times: milliseconds since 1970 of each item, not decreasing. The blend and the towers read them. Without
                them, the blend takes one item per day.
            filter_seen: leave out items of the history.
            same_visit: whether the newest items are of the visit that is still going on, as on the page of a basket.
                The blend reads it: people who come back buy items again, and hardly anybody buys one twice in a visit.
            method: that answers.
            rules: of this query.

        Raises:
            QueryError: an item or the method is unknown.
        """
        lists = replace(self.item_lists(histories, times), same_visit=np.full(len(histories), same_visit))
        _require_top(top)
        if not histories:
            return []
        if filter_seen:
            rules = rules.model_copy(update={"filter_seen": True})
        applied = self._apply_rules(rules)
        users = [slice(start, end) for start, end in pairwise(lists.offsets.tolist())]
        excluded = [
            applied.excluded(lists.values[user], None if lists.times is None else lists.times[user]) for user in users
        ]
        answering = self.method(method)
        return self._select(lambda k: answering.candidates(lists, k, applied.mask), applied, excluded, top)

    def _select(
        self,
        candidates: Callable[[int], tuple[NDArray[np.int64], NDArray[np.float32]]],
        rules: ItemRules,
        excluded: Sequence[set[int]],
        top: int,
    ) -> list[list[Recommendation]]:
        """Return lists of `top` items that the rules allow, from as many candidates as that needs.

        Args:
            candidates: returns the k best allowed items and their scores, both (B, k).
            rules: that hold.
            excluded: B sets of items that a list may not have.
            top: length of each list.
        """
        n = len(self._item_ids)
        k = min(n, top + max(map(len, excluded)) + len(rules.pins))
        while True:
            rows = zip(*candidates(k), excluded, strict=True)
            # As Python objects, the rows of a whole batch would take many times the memory.
            selected = [rules.select(row.tolist(), scores.tolist(), without, top) for row, scores, without in rows]
            if k == n or all(complete for _, complete in selected):
                return [[Recommendation(self._item_ids[item], score) for item, score in each] for each, _ in selected]
            k = min(n, 4 * k)

    @cached_property
    def _apply_rules(self) -> Callable[[CandidateRules], ItemRules]:
        """Cached, because most queries have the same rules."""
        warn_of_unknown_categories(self.catalogue, self.rules)
        # A function that refers to `self` would keep an old promotion in memory until the next full garbage collection.
        return lru_cache(RULES_CACHED)(partial(ItemRules.of, self.catalogue, self.rules))

    def user_vectors(
        self,
        histories: Sequence[Sequence[str]],
        method: str | None = None,
        *,
        times: Sequence[Sequence[int]] | None = None,
    ) -> "Vectors":
        """v_U of each history, oldest item first; queries for a vector database with the exported items.

        Args:
            histories: item ids, oldest first; none is empty.
            method: a dual tower; by default the best one on validation.
            times: milliseconds since 1970 of each item; see `for_histories`.

        Returns:
            (B, D), of length 1. The inner product with an item's vector is its score in `for_histories` with the same
            times, before `seen_offset` is added for items of the history.

        Raises:
            QueryError: a history is empty, an item is unknown, or the method is no dual tower.
        """
        if not all(histories):
            raise QueryError("the history is empty; name at least one item")
        return self.tower(method).user_vectors(self.item_lists(histories, times))

    def for_text(
        self, text: str, top: int = 10, *, method: str | None = None, rules: CandidateRules = NO_RULES
    ) -> list[Recommendation]:
        """The items most similar to an item with this title and nothing else, by a dual tower.

        Raises:
            QueryError: the text is empty, or the method reads no texts.
        """
        if not text.strip():
            raise QueryError("the text is empty; describe an item in some words")
        return self._for_new_item(self.tower(method, "texts"), {TITLE: text}, None, top, rules)

    def for_photo(
        self, photo: bytes, top: int = 10, *, method: str | None = None, rules: CandidateRules = NO_RULES
    ) -> list[Recommendation]:
        """The items most similar to an item with this photo and nothing else, by a dual tower.

        Args:
            photo: content of a file: JPEG, PNG, GIF, WEBP, AVIF, BMP or TIFF.
            top: length of the list.
            method: a dual tower; by default the best one on validation that reads photos.
            rules: of this query.

        Raises:
            QueryError: the bytes are no usable photo, or the method reads none.
        """
        tower = self.tower(method, "photos")
        try:
            image = decode_photo(photo, self.promotion.photo_size, self.promotion.max_pixels)
        except PhotoError as error:
            raise QueryError(f"the photo cannot be used: {error}") from error
        return self._for_new_item(tower, {}, image, top, rules)

    def _for_new_item(
        self, tower: Tower, fields: Mapping[str, Any], photo: Image.Image | None, top: int, rules: CandidateRules
    ) -> list[Recommendation]:
        _require_top(top)
        vector = tower.retriever.new_item_vector(fields, photo, tower.variant)
        return self._similar(tower, vector, set(), top, rules)

    def similar_items(
        self, item: str, top: int = 10, *, method: str | None = None, rules: CandidateRules = NO_RULES
    ) -> list[Recommendation]:
        """The items nearest to an item of the catalogue, without the item itself, by a dual tower.

        Raises:
            QueryError: the item is unknown, or the method is no dual tower.
        """
        _require_top(top)
        number = int(self.item_lists([[item]]).values[0])
        tower = self.tower(method)
        return self._similar(tower, tower.retriever.item_index.vectors[number][None], {number}, top, rules)

    def _similar(
        self, tower: Tower, vector: "Vectors", without: set[int], top: int, rules: CandidateRules
    ) -> list[Recommendation]:
        """The items nearest to a vector (1, D)."""
        applied = self._apply_rules(rules)
        return self._select(lambda k: tower.nearest(vector, k, applied.mask), applied, [without], top)[0]

    @cached_property
    def _item_ids(self) -> list[str]:
        ids: list[str] = self.catalogue[ITEM].to_list()
        return ids

    def number_of(self, item: str) -> int | None:
        """Row of an item in `catalogue`; None for an unknown one."""
        return self._number_of_item.get(clean_id(item))

    @cached_property
    def _number_of_item(self) -> dict[str, int]:
        return {item: number for number, item in enumerate(self._item_ids)}

    def item_lists(self, histories: Sequence[Sequence[str]], times: Sequence[Sequence[int]] | None = None) -> ItemLists:
        """Histories as numbers of the catalogue."""
        numbers = self._number_of_item
        histories = [[*map(clean_id, items)] for items in histories]
        if unknown := list(dict.fromkeys(item for item in chain.from_iterable(histories) if item not in numbers)):
            rest = f" and {len(unknown) - MAX_IDS_IN_ERROR:,} more" if len(unknown) > MAX_IDS_IN_ERROR else ""
            raise QueryError(
                f"unknown item {', '.join(map(repr, unknown[:MAX_IDS_IN_ERROR]))}{rest}: not among the "
                f"{len(numbers):,} of {self.promotion.dataset} at {self.promotion.promoted_at}; ids are those of "
                "column `item` of the dataset's items.parquet, and a newer item needs `pixrec refresh`"
            )
        if times is not None and list(map(len, times)) != list(map(len, histories)):
            raise QueryError("times and histories differ in length; give one time per item")
        if times is not None and any(before > after for each in times for before, after in pairwise(each)):
            raise QueryError("the times of a history decrease; give items and times oldest first")
        values = np.fromiter((numbers[item] for item in chain.from_iterable(histories)), np.int64)
        flat = None if times is None else np.fromiter(chain.from_iterable(times), np.int64)
        return ItemLists.of(values, np.fromiter(map(len, histories), np.int64), flat)


def _documented(error: Exception, copies: Path) -> PixRecError:
    """The error to raise for one that occurred while a promoted copy was loaded."""
    if not copies.exists() and str(read_promotion(PromotedPaths(copies.parent)).number) != copies.name:
        return ArtefactError(f"{copies} does not exist: later promotions have replaced it; load the recommender again")
    if isinstance(error, PixRecError):
        return error
    return ArtefactError(
        f"{copies} cannot be loaded ({type(error).__name__}: {error}); remove the folder {copies.parent} and promote "
        "again"
    )


def _require_top(top: int) -> None:
    if top < 1:
        raise QueryError(f"top is {top}; it must be 1 or more")
