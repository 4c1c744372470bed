"""What lies next to an item in the vector space: what the model takes for alike."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
from safetensors import SafetensorError
from safetensors.numpy import load_file

from pixrec_core.errors import ArtefactError
from pixrec_core.paths import VariantPaths
from pixrec_core.report.inputs import Inputs
from pixrec_core.report.pictures import Album, Tile, lottery
from pixrec_core.schemas import ITEM

ITEMS_SHOWN: Final = 5
NEIGHBOURS: Final = 8


@dataclass(frozen=True)
class Neighbourhood:
    """One item, and by variant the items nearest to it, nearest first."""

    item: Tile
    nearest: dict[str, list[Tile]]


def neighbourhoods(inputs: Inputs, album: Album) -> list[Neighbourhood]:
    """A few items in lottery order, those with a photo first. Empty without item vectors.

    Raises:
        ArtefactError: vectors and items of a variant do not belong together.
    """
    spaces = {
        v: _read(inputs.paths.variant(v)) for v in inputs.rankings if inputs.paths.variant(v).item_vectors.exists()
    }
    if not spaces:
        return []
    shared = set.intersection(*(set(items) for items, _ in spaces.values()))
    names = sorted(shared, key=lambda item: (not inputs.paths.image(item).exists(), *lottery([item])))
    return [
        Neighbourhood(album.tile(name), {v: [album.tile(i) for i in _nearest(name, *s)] for v, s in spaces.items()})
        for name in names[:ITEMS_SHOWN]
    ]


def _read(variant: VariantPaths) -> tuple[list[str], npt.NDArray[np.float32]]:
    """Items (n) and their vectors (n, D), L2-normalised."""
    folder = variant.item_vectors
    try:
        items = pl.read_parquet(folder / "items.parquet", glob=False)[ITEM].to_list()
        vectors = load_file(folder / "vectors.safetensors")["vectors"]
    except (OSError, pl.exceptions.PolarsError, SafetensorError, KeyError) as error:
        raise ArtefactError(f"{folder} is damaged ({error}); run stage item_vectors again") from error
    if len(items) != len(vectors):
        raise ArtefactError(f"{folder}: {len(items)} items but {len(vectors)} vectors; run stage item_vectors again")
    return items, vectors


def _nearest(item: str, items: list[str], vectors: npt.NDArray[np.float32]) -> list[str]:
    """Nearest by cosine, the item itself left out; of equals, the one that stands first in the catalogue."""
    row = items.index(item)
    similarity = vectors @ vectors[row]
    similarity[row] = -np.inf
    return [items[i] for i in np.argsort(-similarity, kind="stable")[: min(NEIGHBOURS, len(items) - 1)]]
