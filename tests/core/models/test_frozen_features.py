"""Frozen features of a variant, as the stage `item_features` wrote them."""

from pathlib import Path

import numpy as np

from pixrec_core.models.frozen_features import variant_features
from pixrec_core.paths import DatasetPaths


def test_shuffled_photos_are_those_of_other_items_and_none_stays_none(tmp_path: Path) -> None:
    paths = DatasetPaths(tmp_path / "shop")
    paths.item_features.mkdir(parents=True)
    values = np.eye(5, 8, dtype=np.float32)
    values[[1, 3]] = 0  # without a photo; the last item has one
    for name in ("text", "photo"):
        np.save(paths.item_features / f"{name}.npy", values)
        np.save(paths.item_features / f"{name}_keys.npy", np.array([b"a", b"", b"c", b"", b"e"], "S32"))
    found = variant_features(paths.variant("shuffled_images"))
    assert np.array_equal(found["text"].values, values)
    shuffled = found["photo"].values
    assert not shuffled[[1, 3]].any()
    assert sorted(map(tuple, shuffled)) == sorted(map(tuple, values))
    assert not (shuffled[[0, 2, 4]] == values[[0, 2, 4]]).all(axis=1).any()
