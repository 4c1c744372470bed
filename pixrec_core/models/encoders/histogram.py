"""Colour and edge histograms of photos: features without a neural network.

The features are square roots of histograms over cells of the photo, so the cosine of two photos is the mean overlap of
their histograms (Bhattacharyya coefficient), between 0 and 1.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixrec_core.models.encoders.base import ItemEncoder, Modality, Vectors

EDGE: Final = 64  # pixels; a photo is resized to a square of this edge
LEVELS: Final = 4  # of each of red, green and blue
COLOUR_CELLS: Final = 2  # along each side of the photo
EDGE_CELLS: Final = 4
DIRECTIONS: Final = 8  # of edges, over 180 degrees: light to dark is the same edge as dark to light
VERSION: Final = 1  # raised when the code computes other features for the same photo

FEATURES: Final = COLOUR_CELLS**2 * LEVELS**3 + EDGE_CELLS**2 * DIRECTIONS


class Histogram(ItemEncoder):
    """Counts colours and edges."""

    modalities: frozenset[Modality] = frozenset({"photo"})

    @property
    def description(self) -> dict[str, Any]:
        return {"encoder": "histogram", "version": VERSION}

    def encode_photos(self, photos: Sequence[Image.Image]) -> Vectors:
        return np.array([describe_photo(photo) for photo in photos], np.float32).reshape(-1, FEATURES)


def create(_name: str, _texts: Callable[[], Sequence[str]], _max_tokens: int) -> ItemEncoder:
    """Return the encoder."""
    return Histogram()


def load(_folder: Path) -> ItemEncoder:
    """Return the encoder."""
    return Histogram()


def describe_photo(photo: Image.Image) -> Vectors:
    """Return the (F,) features of an RGB photo, colours first, with norm 1."""
    pixels = np.asarray(photo.resize((EDGE, EDGE), Image.Resampling.BOX), np.float32)
    colours, edges = _colours(pixels), _edges(pixels.mean(axis=2))
    features: Vectors = np.sqrt(np.concatenate([colours / colours.sum(), edges / max(edges.sum(), 1)]))
    return features / np.linalg.norm(features)


def _colours(pixels: Vectors) -> Vectors:
    """Return the number of pixels per cell and colour, from (EDGE, EDGE, 3)."""
    level = (pixels * LEVELS / 256).astype(np.int64)
    colour = (level[..., 0] * LEVELS + level[..., 1]) * LEVELS + level[..., 2]
    bins = _cells(COLOUR_CELLS) * LEVELS**3 + colour
    return np.bincount(bins.ravel(), minlength=COLOUR_CELLS**2 * LEVELS**3).astype(np.float32)


def _edges(grey: Vectors) -> Vectors:
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
