"""The two methods that are no fitted model of one file: a dual tower with its index, and the blend with its methods."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from pixrec_core.paths import DatasetPaths
from pixrec_core.ranking_table import top_items
from pixrec_core.recommenders._blend_features import MethodLists
from pixrec_core.recommenders._blend_rankings import CELLS_PER_BATCH, USERS_PER_BATCH
from pixrec_core.recommenders.base import ItemLists, Method, Scores
from pixrec_core.recommenders.blend import Blend
from pixrec_core.schemas import DAY_MS

if TYPE_CHECKING:
    from pixrec_core.retrieval.encode import Vectors
    from pixrec_core.retrieval.retriever import Retriever


@dataclass(frozen=True, eq=False, kw_only=True)
class Tower(Method):
    """A dual tower: ranks by the cosine of the vectors of history and item; an empty history has no vector.

    The tower's `seen_offset` is added to the cosines of items of the history.

    Attributes:
        variant: determines which of text and photo it reads.
        retriever: the towers and the index.
    """

    variant: str
    retriever: "Retriever"

    @classmethod
    def load(cls, paths: DatasetPaths, variant: str) -> "Tower":
        """Read a variant's artefacts.

        Raises:
            MissingArtefactError: there is no checkpoint or no index.
            ArtefactError: the index is damaged, or belongs to other vectors or another checkpoint.
        """
        from pixrec_core.retrieval.retriever import Retriever  # imports torch, which takes a second

        retriever = Retriever.load(paths.variant(variant))
        return cls(popularity_ranks=retriever.popularity_ranks, variant=variant, retriever=retriever)

    def user_vectors(self, histories: ItemLists) -> "Vectors":
        """Return v_U (B, D) of histories, none of which is empty."""
        parts = np.split(histories.values, histories.offsets[1:-1])
        times = None
        if histories.times is not None:
            times = [part.tolist() for part in np.split(histories.times, histories.offsets[1:-1])]
        return self.retriever.encoder.user_vectors([part.tolist() for part in parts], times=times)

    def scores(self, histories: ItemLists) -> Scores:
        scores = np.zeros((len(histories), self.n_items), np.float32)
        known, rest = _without_empty(histories)
        if known.any():
            cosines = self.user_vectors(rest) @ self.retriever.item_index.vectors.T
            scores[known] = cosines + np.float32(self.retriever.seen_offset) * rest.incidence(self.n_items).toarray()
        return scores

    def candidates(
        self, histories: ItemLists, k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], Scores]:
        if allowed is not None:
            return super().candidates(histories, k, allowed)
        found = min(k, self.n_items)
        items, scores = np.full((len(histories), k), -1, np.int64), np.zeros((len(histories), k), np.float32)
        items[:, :found] = np.argsort(self.popularity_ranks)[:found]
        known, rest = _without_empty(histories)
        if known.any():
            seen = [part.tolist() for part in np.split(rest.values, rest.offsets[1:-1])]
            lengths = np.full(len(rest), found)
            nearest = self.retriever.nearest_lists(self.user_vectors(rest), lengths, seen)
            items[known, :found], scores[known, :found] = nearest
        return items, scores

    def nearest(
        self, vectors: "Vectors", k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], Scores]:
        """Return the k items with the highest inner product with each vector, and the products, both (B, k).

        Args:
            vectors: (B, D).
            k: at most the number of items.
            allowed: (n,) whether an item may be found; the search is exact then, and -1 ends a short list.
        """
        index = self.retriever.item_index
        if allowed is None:
            return index.nearest_in_order(vectors, k, self.popularity_ranks)
        ids = np.flatnonzero(allowed)
        items, scores = np.full((len(vectors), k), -1, np.int64), np.zeros((len(vectors), k), np.float32)
        if found := min(k, len(ids)):
            ranks = np.argsort(np.argsort(self.popularity_ranks[ids]))
            products = vectors @ index.vectors[ids].T
            best, scores[:, :found] = top_items(products, np.full(len(vectors), found), ranks)
            items[:, :found] = ids[best]
        return items, scores


def _without_empty(histories: ItemLists) -> tuple[NDArray[np.bool_], ItemLists]:
    """Return (B,) whether a history has items, and the histories that have."""
    lengths = np.diff(histories.offsets)
    return lengths > 0, ItemLists.of(histories.values, lengths[lengths > 0], histories.times)


#: Between two items of a history whose times are unknown.
STEP_MS: Final = DAY_MS


@dataclass(frozen=True, eq=False, kw_only=True)
class BlendMethod(Method):
    """The blend together with the methods whose candidates it orders.

    Attributes:
        blend: the trees and the facts about items.
        methods: by name; all that the blend needs.
    """

    blend: Blend
    methods: Mapping[str, Method]

    @classmethod
    def of(cls, blend: Blend, methods: Mapping[str, Method]) -> "BlendMethod":
        """Build from a loaded blend and its loaded methods."""
        return cls(popularity_ranks=blend.items.popularity_ranks, blend=blend, methods=methods)

    def scores(self, histories: ItemLists) -> Scores:
        items, values = self.candidates(histories, self.n_items)
        scores = np.zeros_like(values)
        np.put_along_axis(scores, items, values, axis=1)
        return scores

    def candidates(
        self, histories: ItemLists, k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], Scores]:
        """See `Method.candidates`. Without times, a history has one item per day, up to the last known sale.

        Each method's list has allowed items only, so that the blend orders as many candidates under strict rules.
        """
        items, scores = np.full((len(histories), k), -1, np.int64), np.zeros((len(histories), k), np.float32)
        found = min(k, self.n_items if allowed is None else int(allowed.sum()))
        if not found:
            return items, scores
        for batch, part in histories.batches(USERS_PER_BATCH, CELLS_PER_BATCH):
            timed = part if part.times is not None else replace(part, times=self._default_times(part))
            lists = {name: self._lists(self.methods[name], part, allowed) for name in self.blend.methods}
            best = self.blend.rank(lists, timed, np.full(len(part), found), allowed)
            items[batch, :found], scores[batch, :found] = best
        return items, scores

    def _lists(self, method: Method, histories: ItemLists, allowed: NDArray[np.bool_] | None) -> MethodLists:
        """A method's lists: `candidates` items, and one more per distinct item of the history, as in its ranking."""
        lengths = self.blend.candidates + np.diff(histories.incidence(self.n_items).indptr)
        items, scores = method.candidates(histories, min(int(lengths.max()), self.n_items), allowed)
        items[np.arange(items.shape[1]) >= lengths[:, None]] = -1
        return MethodLists(items, scores)

    def _default_times(self, histories: ItemLists) -> NDArray[np.int64]:
        last = float(np.nanmax(self.blend.items.last_sale, initial=0)) * DAY_MS
        return int(last) - histories.from_newest * STEP_MS
