"""Users and items in pictures, in the order of a hash of their ids."""

import base64
import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image

from pixrec_core.paths import DatasetPaths
from pixrec_core.report.inputs import MULTIMODAL, TEXT_ONLY, Inputs
from pixrec_core.report.tables import method_title
from pixrec_core.schemas import ITEM, ITEMS, RANK, USER

THUMBNAIL_SIZE: Final = 96  # longest edge, pixels
QUALITY: Final = 80
HISTORY_SHOWN: Final = 8  # newest items of a history
TOP: Final = 10  # length of a list; a target in it is a hit
ITEMS_SHOWN: Final = 5
NEIGHBOURS: Final = 8


@dataclass(frozen=True)
class Tile:
    """One item in a picture grid. `photo` is a data URI, or None for an item without a photo."""

    title: str
    photo: str | None
    hit: bool = False
    seen: bool = False


@dataclass(frozen=True)
class MethodList:
    """First items of a method's ranking, and the target's rank in the whole ranking, None if it is not in it."""

    method: str
    tiles: list[Tile]
    rank: int | None


@dataclass(frozen=True)
class ShownUser:
    """One test user: history, target, and the list of each method."""

    label: str
    earlier: int
    history: list[Tile]
    target: Tile
    lists: list[MethodList]


@dataclass(frozen=True)
class Gallery:
    """Some users of one kind, of which there are `total` among the test users."""

    title: str
    note: str
    total: int
    users: list[ShownUser]


@dataclass
class Album:
    """Thumbnails, each created once.

    The page embeds them as `<img>`, 1 to 5 kB each, so every photo keeps its alternative text and can be printed.
    `unreadable` counts damaged photos.
    """

    paths: DatasetPaths
    titles: Mapping[str, str]
    unreadable: int = 0
    _photos: dict[str, str | None] = field(default_factory=dict)

    def tile(self, item: str, *, hit: bool = False, seen: bool = False) -> Tile:
        """The item's tile, with its id in place of a missing title."""
        if item not in self._photos:
            self._photos[item] = self._thumbnail(item)
        return Tile(self.titles.get(item) or item, self._photos[item], hit, seen)

    def _thumbnail(self, item: str) -> str | None:
        """Data URI of a small JPEG. A damaged photo is counted and left out, so that it does not fail the report."""
        path = self.paths.image(item)
        if not path.exists():
            return None
        try:
            with Image.open(path) as photo:
                photo.draft("RGB", (THUMBNAIL_SIZE, THUMBNAIL_SIZE))
                small = photo.convert("RGB")
        except (OSError, Image.DecompressionBombError):
            self.unreadable += 1
            return None
        return data_uri(small)


def data_uri(photo: Image.Image) -> str:
    """Data URI of a photo (RGB) as a small JPEG."""
    photo.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def hash_order(names: Iterable[str]) -> list[str]:
    """SHA-256 of each name: a reproducible random sort key."""
    return [hashlib.sha256(name.encode()).hexdigest() for name in names]


def galleries(inputs: Inputs, album: Album) -> list[Gallery]:
    """Random users, then users of each outcome, without duplicates. Empty without a ranking."""
    if not inputs.rankings:
        return []
    ranks = _target_ranks(inputs)
    shown: set[str] = set()
    result = []
    for title, note, users, count in _user_kinds(ranks, list(inputs.rankings)):
        fresh = users.filter(~pl.col(USER).is_in(list(shown))).head(count)
        shown |= set(fresh[USER])
        if len(fresh):
            result.append(Gallery(title, note, len(users), list(_shown_users(fresh, inputs, album))))
    return result


def _target_ranks(inputs: Inputs) -> pl.DataFrame:
    """One row per test user in hash order: `USER`, `ITEMS`, `ITEM` (the target), `label`, its rank by method."""
    users = inputs.sequences.select(USER, ITEMS, pl.col(ITEMS).list.last().alias(ITEM))
    for method, ranking in inputs.rankings.items():
        ranks = ranking.select(USER, ITEM, pl.col(RANK).alias(method)).join(users.lazy(), [USER, ITEM], "semi")
        users = users.join(ranks.collect(), [USER, ITEM], "left")
    return users.with_columns(pl.Series("label", hash_order(users[USER]), pl.String)).sort("label")


def _user_kinds(ranks: pl.DataFrame, methods: list[str]) -> Iterator[tuple[str, str, pl.DataFrame, int]]:
    """(title, note, users of that kind in order, number to show)."""
    lead = methods[0]
    hit = {method: (pl.col(method) <= TOP).fill_null(value=False) for method in methods}
    yield "Random users", "The first users in the order of a hash of their id.", ranks, 4
    if {MULTIMODAL, TEXT_ONLY} <= set(methods):
        gained = ranks.filter(hit[MULTIMODAL] & ~hit[TEXT_ONLY])
        lost = ranks.filter(hit[TEXT_ONLY] & ~hit[MULTIMODAL])
        yield "Found only with photos", "The next item is in the top ten of multimodal and not of text only.", gained, 3
        yield (
            "Found only without photos",
            "The next item is in the top ten of text only and not of multimodal.",
            lost,
            3,
        )
    else:
        yield "Found", f"The next item is in the top ten of {method_title(lead)}.", ranks.filter(hit[lead]), 3
    misses = ranks.filter(~hit[lead]).sort(lead, descending=True, nulls_last=False, maintain_order=True)
    yield "Worst misses", f"The next item has the lowest rank in the list of {method_title(lead)}.", misses, 3


def _shown_users(users: pl.DataFrame, inputs: Inputs, album: Album) -> Iterator[ShownUser]:
    top = {method: _top_items(ranking, users) for method, ranking in inputs.rankings.items()}
    for row in users.iter_rows(named=True):
        *history, target = row[ITEMS]
        yield ShownUser(
            label=row["label"][:8],
            earlier=max(0, len(history) - HISTORY_SHOWN),
            history=[album.tile(item) for item in history[-HISTORY_SHOWN:]],
            target=album.tile(target),
            lists=[
                MethodList(
                    method=method,
                    tiles=[album.tile(i, hit=i == target, seen=i in history) for i in items.get(row[USER], [])],
                    rank=row[method],
                )
                for method, items in top.items()
            ],
        )


def _top_items(ranking: pl.LazyFrame, users: pl.DataFrame) -> dict[str, list[str]]:
    """First items by user, best first."""
    rows = ranking.filter(pl.col(RANK) <= TOP).join(users.lazy().select(USER), USER, "semi")
    return dict(rows.sort(USER, RANK).group_by(USER).agg(ITEM).collect().iter_rows())


@dataclass(frozen=True)
class Neighbourhood:
    """One item, and by method the items with the nearest vectors, nearest first."""

    item: Tile
    nearest: dict[str, list[Tile]]


def neighbourhoods(inputs: Inputs, album: Album) -> list[Neighbourhood]:
    """A few items in hash order, those with a photo first. Empty without item vectors.

    Raises:
        ArtefactError: the vectors of a method are damaged.
    """
    from pixrec_core.retrieval.encode import read_item_vectors  # imports torch; an answer needs no vectors

    folders = {method: inputs.paths.variant(method).item_vectors for method in inputs.rankings}
    spaces = {method: read_item_vectors(folder) for method, folder in folders.items() if folder.exists()}
    if not spaces:
        return []
    common = set.intersection(*(set(items) for items, _ in spaces.values()))
    names = sorted(common, key=lambda item: (not inputs.paths.image(item).exists(), *hash_order([item])))
    return [
        Neighbourhood(
            album.tile(name),
            {method: [album.tile(item) for item in _nearest(name, *space)] for method, space in spaces.items()},
        )
        for name in names[:ITEMS_SHOWN]
    ]


def _nearest(item: str, items: list[str], vectors: NDArray[np.float32]) -> list[str]:
    """Nearest other items by cosine; ties keep the order of the catalogue. `vectors` is (N, D), unit length."""
    row = items.index(item)
    cosines = vectors @ vectors[row]
    cosines[row] = -np.inf
    return [items[i] for i in np.argsort(-cosines, kind="stable")[: min(NEIGHBOURS, len(items) - 1)]]
