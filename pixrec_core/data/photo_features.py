"""Colour and edge histograms of photos: features without a neural network.

The features are square roots of histograms over cells of the photo, so the cosine of two photos is the mean overlap of
their histograms (Bhattacharyya coefficient), between 0 and 1.
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

EDGE: Final = 64  # pixels; a photo is resized to a square of this edge
LEVELS: Final = 4  # of each of red, green and blue
COLOUR_CELLS: Final = 2  # along each side of the photo
EDGE_CELLS: Final = 4
DIRECTIONS: Final = 8  # of edges, over 180 degrees: light to dark is the same edge as dark to light
VERSION: Final = 1  # raised when the code computes other features for the same photo

FEATURES: Final = COLOUR_CELLS**2 * LEVELS**3 + EDGE_CELLS**2 * DIRECTIONS

Features = NDArray[np.float32]
log = logging.getLogger(__name__)


def photo_features(paths: DatasetPaths, catalogue: pl.DataFrame) -> Features:
    """Return (n, F) features of the items' photos, with norm 1; zeros for items without a photo. Cached on disk.

    Args:
        paths: of the dataset.
        catalogue: n rows of `CATALOGUE_SCHEMA`.

    Raises:
        MissingArtefactError: a photo or the manifest of photos is missing.
        ArtefactError: a photo is damaged.
    """
    with_photo = catalogue[HAS_IMAGE].to_numpy()
    items = catalogue.filter(HAS_IMAGE)[ITEM].to_list()
    path = paths.cache / f"photo-features-{_key(paths, items)}.npy"
    if not path.exists():
        rows = [describe_photo(open_photo(paths, item)) for item in track(items, "photo features", len(items), log)]
        with files.replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, np.array(rows, np.float32).reshape(-1, FEATURES))
    features = np.zeros((catalogue.height, FEATURES), np.float32)
    features[with_photo] = np.load(path)
    return features


def describe_photo(photo: Image.Image) -> Features:
    """Return the (F,) features of an RGB photo, colours first, with norm 1."""
    pixels = np.asarray(photo.resize((EDGE, EDGE), Image.Resampling.BOX), np.float32)
    colours, edges = _colours(pixels), _edges(pixels.mean(axis=2))
    features: Features = np.sqrt(np.concatenate([colours / colours.sum(), edges / max(edges.sum(), 1)]))
    return features / np.linalg.norm(features)


def _colours(pixels: Features) -> Features:
    """Return the number of pixels per cell and colour, from (EDGE, EDGE, 3)."""
    level = (pixels * LEVELS / 256).astype(np.int64)
    colour = (level[..., 0] * LEVELS + level[..., 1]) * LEVELS + level[..., 2]
    bins = _cells(COLOUR_CELLS) * LEVELS**3 + colour
    return np.bincount(bins.ravel(), minlength=COLOUR_CELLS**2 * LEVELS**3).astype(np.float32)


def _edges(grey: Features) -> Features:
    """Return the strength of edges per cell and direction, from (EDGE, EDGE)."""
    down, right = np.gradient(grey)
    half_turns = np.arctan2(down, right) / np.pi % 1
    bins = _cells(EDGE_CELLS) * DIRECTIONS + (half_turns * DIRECTIONS).astype(np.int64) % DIRECTIONS
    strength = np.hypot(down, right)
    return np.bincount(bins.ravel(), strength.ravel(), minlength=EDGE_CELLS**2 * DIRECTIONS).astype(np.float32)


def _cells(per_side: int) -> NDArray[np.int64]:
    """Return the (EDGE, EDGE) cell number of each pixel, for `per_side` x `per_side` cells."""
    cell = np.arange(EDGE) * per_side // EDGE
    return cell[:, None] * per_side + cell


def _key(paths: DatasetPaths, items: list[str]) -> str:
    """Return a hash of the inputs of the features."""
    manifest = files.sha256_file(files.require(paths.images_manifest))
    return hashlib.sha256("\n".join([str(VERSION), manifest, *items]).encode()).hexdigest()[:16]
