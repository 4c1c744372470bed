"""Photos as numbers, without a network: which colours stand where, and which way edges run.

Both are histograms over cells of the photo, of which the root is taken: the cosine of two photos is
then the mean overlap of their histograms (Bhattacharyya's coefficient), between 0 and 1. Nothing is
learnt and nothing is downloaded.
"""

import hashlib
import logging
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image

from pixrec_core import files
from pixrec_core.data.images import open_photo
from pixrec_core.paths import DatasetPaths
from pixrec_core.progress import track
from pixrec_core.schemas import HAS_IMAGE, ITEM

EDGE: Final = 64  # pixels; a photo is squeezed into a square of this edge
LEVELS: Final = 4  # of each of red, green and blue
COLOUR_CELLS: Final = 2  # along each edge of the photo
EDGE_CELLS: Final = 4
DIRECTIONS: Final = 8  # of edges, over half a turn: light to dark is the same edge as dark to light
VERSION: Final = 1  # raised when the same photo comes to have other features

FEATURES: Final = COLOUR_CELLS**2 * LEVELS**3 + EDGE_CELLS**2 * DIRECTIONS

Features = NDArray[np.float32]
log = logging.getLogger(__name__)


def photo_features(paths: DatasetPaths, catalogue: pl.DataFrame) -> Features:
    """(n, F) features of the items' photos, of length 1; zeros where an item has none. Computed once and kept.

    Args:
        paths: of the dataset.
        catalogue: of `CATALOGUE_SCHEMA`, n rows.

    Raises:
        MissingArtefactError: a photo or the manifest of photos is not there.
        ArtefactError: a photo is damaged.
    """
    with_photo = catalogue[HAS_IMAGE].to_numpy()
    items = catalogue.filter(HAS_IMAGE)[ITEM].to_list()
    path = paths.cache / f"photo-features-{_key(paths, items)}.npy"
    if not path.exists():
        described = [describe(open_photo(paths, item)) for item in track(items, "photos described", len(items), log)]
        with files.replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, np.array(described, np.float32).reshape(-1, FEATURES))
    features = np.zeros((catalogue.height, FEATURES), np.float32)
    features[with_photo] = np.load(path)
    return features


def describe(photo: Image.Image) -> Features:
    """(F,) features of one RGB photo, colours first; of length 1."""
    pixels = np.asarray(photo.resize((EDGE, EDGE), Image.Resampling.BOX), np.float32)
    colours, edges = _colours(pixels), _edges(pixels.mean(axis=2))
    features: Features = np.sqrt(np.concatenate([colours / colours.sum(), edges / max(edges.sum(), 1)]))
    return features / np.linalg.norm(features)


def _colours(pixels: Features) -> Features:
    """Pixels of each colour in each cell, from (EDGE, EDGE, 3)."""
    level = (pixels * LEVELS / 256).astype(np.int64)
    colour = (level[..., 0] * LEVELS + level[..., 1]) * LEVELS + level[..., 2]
    bins = _cells(COLOUR_CELLS) * LEVELS**3 + colour
    return np.bincount(bins.ravel(), minlength=COLOUR_CELLS**2 * LEVELS**3).astype(np.float32)


def _edges(grey: Features) -> Features:
    """Strength of the edges of each direction in each cell, from (EDGE, EDGE)."""
    down, right = np.gradient(grey)
    half_turns = np.arctan2(down, right) / np.pi % 1
    bins = _cells(EDGE_CELLS) * DIRECTIONS + (half_turns * DIRECTIONS).astype(np.int64) % DIRECTIONS
    strength = np.hypot(down, right)
    return np.bincount(bins.ravel(), strength.ravel(), minlength=EDGE_CELLS**2 * DIRECTIONS).astype(np.float32)


def _cells(along: int) -> NDArray[np.int64]:
    """(EDGE, EDGE) number of the cell that each pixel lies in, of `along` x `along`."""
    place = np.arange(EDGE) * along // EDGE
    return place[:, None] * along + place


def _key(paths: DatasetPaths, items: list[str]) -> str:
    """Names what the features are made from."""
    manifest = files.sha256_file(files.require(paths.images_manifest))
    return hashlib.sha256("\n".join([str(VERSION), manifest, *items]).encode()).hexdigest()[:16]
