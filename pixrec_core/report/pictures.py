"""Users and items in pictures, chosen by rule and never by hand."""

import base64
import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import polars as pl
from PIL import Image

from pixrec_core.paths import DatasetPaths
from pixrec_core.report.inputs import MULTIMODAL, TEXT_ONLY, Inputs
from pixrec_core.report.tables import label
from pixrec_core.schemas import ITEM, ITEMS, RANK, USER

EDGE: Final = 96  # longest edge of a thumbnail, pixels
QUALITY: Final = 80
HISTORY: Final = 8  # history items shown, the newest ones
TOP: Final = 10  # length of a list; a target within it is a hit


@dataclass(frozen=True)
class Tile:
    """One item in a picture grid. `photo` is a data URI, None where the item has no photo."""

    title: str
    photo: str | None
    hit: bool = False
    seen: bool = False


@dataclass(frozen=True)
class RankedList:
    """First items of one variant's ranking, and the target's rank in all of it, or None past its depth."""

    variant: str
    tiles: list[Tile]
    rank: int | None


@dataclass(frozen=True)
class Shopper:
    """One test user: history, what came next, and what each variant suggested."""

    label: str
    earlier: int
    history: list[Tile]
    target: Tile
    lists: list[RankedList]


@dataclass(frozen=True)
class Gallery:
    """Some users of one kind; `total` of the test users are of that kind."""

    title: str
    note: str
    total: int
    shoppers: list[Shopper]


@dataclass
class Album:
    """Thumbnails, each made once.

    The page repeats them as `<img>`: a thumbnail weighs 1 to 5 kB, so the page stays small and
    every photo keeps its alternative text and can be printed and saved.

    Attributes:
        paths: of the dataset.
        titles: of items, as `titles_of` gives them.
        unreadable: photos that were damaged.
    """

    paths: DatasetPaths
    titles: Mapping[str, str]
    unreadable: int = 0
    _photos: dict[str, str | None] = field(default_factory=dict)

    def tile(self, item: str, *, hit: bool = False, seen: bool = False) -> Tile:
        """The item's tile; without a title it goes by its id."""
        if item not in self._photos:
            self._photos[item] = self._thumbnail(item)
        return Tile(self.titles.get(item) or item, self._photos[item], hit, seen)

    def _thumbnail(self, item: str) -> str | None:
        """Data URI of a small JPEG. A damaged photo counts and reads as none: the page is worth more than one photo."""
        path = self.paths.image(item)
        if not path.exists():
            return None
        try:
            with Image.open(path) as photo:
                photo.draft("RGB", (EDGE, EDGE))
                small = photo.convert("RGB")
        except OSError:
            self.unreadable += 1
            return None
        return data_uri(small)


def data_uri(photo: Image.Image) -> str:
    """A photo in RGB as a small JPEG that stands in the page itself."""
    photo.thumbnail((EDGE, EDGE))
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def lottery(names: Iterable[str]) -> list[str]:
    """SHA-256 of each name: an order that nobody chose and that every run repeats."""
    return [hashlib.sha256(name.encode()).hexdigest() for name in names]


def galleries(inputs: Inputs, album: Album) -> list[Gallery]:
    """Users by chance, and users of each outcome; no user twice. Empty without a ranking."""
    if not inputs.rankings:
        return []
    ranks = _target_ranks(inputs)
    shown: set[str] = set()
    result = []
    for title, note, users, count in _kinds(ranks, list(inputs.rankings)):
        fresh = users.filter(~pl.col(USER).is_in(list(shown))).head(count)
        shown |= set(fresh[USER])
        if len(fresh):
            result.append(Gallery(title, note, len(users), list(_shoppers(fresh, inputs, album))))
    return result


def _target_ranks(inputs: Inputs) -> pl.DataFrame:
    """One row a test user, in lottery order: `USER`, `ITEMS`, `ITEM` (the target), `label`, its rank by variant."""
    users = inputs.sequences.select(USER, ITEMS, pl.col(ITEMS).list.last().alias(ITEM))
    for variant, ranking in inputs.rankings.items():
        ranks = ranking.select(USER, ITEM, pl.col(RANK).alias(variant)).join(users.lazy(), [USER, ITEM], "semi")
        users = users.join(ranks.collect(), [USER, ITEM], "left")
    return users.with_columns(pl.Series("label", lottery(users[USER]), pl.String)).sort("label")


def _kinds(ranks: pl.DataFrame, variants: list[str]) -> Iterator[tuple[str, str, pl.DataFrame, int]]:
    """(title, note, users of that kind in order of showing, how many to show)."""
    lead = variants[0]
    hit = {v: (pl.col(v) <= TOP).fill_null(value=False) for v in variants}
    yield "Chosen by chance", "The first users in the order of a hash of their id, whatever came of them.", ranks, 4
    if variants == [MULTIMODAL, TEXT_ONLY]:
        gained = ranks.filter(hit[MULTIMODAL] & ~hit[TEXT_ONLY])
        lost = ranks.filter(hit[TEXT_ONLY] & ~hit[MULTIMODAL])
        yield "Found only with photos", "Among the first ten with photos, not with text alone.", gained, 3
        yield "Found only without photos", "Among the first ten with text alone, not with photos.", lost, 3
    else:
        yield "Found", f"The next item is among the first ten of {label(lead)}.", ranks.filter(hit[lead]), 3
    misses = ranks.filter(~hit[lead]).sort(lead, descending=True, nulls_last=False, maintain_order=True)
    yield "Worst misses", f"The next item is furthest down in the ranking of {label(lead)}.", misses, 3


def _shoppers(users: pl.DataFrame, inputs: Inputs, album: Album) -> Iterator[Shopper]:
    top = {variant: _top_items(ranking, users) for variant, ranking in inputs.rankings.items()}
    for row in users.iter_rows(named=True):
        *history, target = row[ITEMS]
        yield Shopper(
            label=row["label"][:8],
            earlier=max(0, len(history) - HISTORY),
            history=[album.tile(item) for item in history[-HISTORY:]],
            target=album.tile(target),
            lists=[
                RankedList(
                    variant=variant,
                    tiles=[album.tile(i, hit=i == target, seen=i in history) for i in items.get(row[USER], [])],
                    rank=row[variant],
                )
                for variant, items in top.items()
            ],
        )


def _top_items(ranking: pl.LazyFrame, users: pl.DataFrame) -> dict[str, list[str]]:
    """User to first items, best first."""
    rows = ranking.filter(pl.col(RANK) <= TOP).join(users.lazy().select(USER), USER, "semi")
    return dict(rows.sort(USER, RANK).group_by(USER).agg(ITEM).collect().iter_rows())
