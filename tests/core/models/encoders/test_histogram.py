"""Colour and edge histograms of photos."""

import numpy as np
import pytest
from PIL import Image

from pixrec_core.models.encoders.histogram import COLOUR_CELLS, EDGE, LEVELS, describe_photo

COLOURS = COLOUR_CELLS**2 * LEVELS**3


def photo(pixels):
    return Image.fromarray(np.asarray(pixels, np.uint8))


def halves(left, right):
    pixels = np.zeros((EDGE, EDGE, 3))
    pixels[:, : EDGE // 2], pixels[:, EDGE // 2 :] = left, right
    return pixels


def test_one_colour_fills_one_bin_of_each_cell():
    features = describe_photo(Image.new("RGB", (200, 100), (255, 0, 64)))
    bins = [cell * LEVELS**3 + (3 * LEVELS + 0) * LEVELS + 1 for cell in range(COLOUR_CELLS**2)]
    assert np.flatnonzero(features).tolist() == bins
    assert np.allclose(features[bins], 1 / 2)  # the square root of 1/4


def test_similarity_is_the_overlap_of_histograms():
    red, blue = (255, 0, 0), (0, 0, 255)
    whole, half = describe_photo(photo(halves(red, red))), describe_photo(photo(halves(red, blue)))
    # Red and blue are the same grey, so there is no edge; half of the pixels have the colour of the first photo.
    assert whole @ half == pytest.approx(0.5)
    assert whole @ describe_photo(photo(halves(blue, blue))) == 0


def test_edges_depend_on_their_direction_but_not_on_the_lighter_side():
    black, white = (0, 0, 0), (255, 255, 255)
    upright, mirrored = halves(black, white), halves(white, black)
    edges = [describe_photo(photo(p))[COLOURS:] for p in (upright, mirrored, upright.transpose(1, 0, 2))]
    assert np.allclose(edges[0], edges[1])
    assert edges[0] @ edges[2] == pytest.approx(0, abs=1e-6)
