"""Photos as inputs of the vision tower: cached colour values convert to the image processor's values."""

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from pixrec_core.models.backbones import Processor
from pixrec_core.models.backbones.smolvlm import FamilyProcessor
from pixrec_core.models.photo_store import PhotoStore, current_features, photo_files, pixel_store
from pixrec_core.paths import DatasetPaths

EDGE = 56  # pixels; whole patches for every processor below


def config(kind):
    return SimpleNamespace(model_type=kind, vision_config=SimpleNamespace(image_size=EDGE))


def smolvlm():
    from transformers import SmolVLMImageProcessorPil

    edge = {"longest_edge": EDGE}
    return FamilyProcessor(None, SmolVLMImageProcessorPil(size=edge, max_image_size=edge), config("smolvlm"))


def siglip():
    from transformers import SiglipImageProcessorPil

    return Processor(None, SiglipImageProcessorPil(size={"height": 48, "width": 48}), config("paligemma"))


def clip():
    """Mean and standard deviation differ by colour channel."""
    from transformers import CLIPImageProcessorPil

    size = {"height": EDGE, "width": EDGE}
    return Processor(None, CLIPImageProcessorPil(size=size, do_center_crop=False), config("llava"))


def qwen():
    """Pixels are ordered by patch, and each photo occurs twice, as two frames."""
    from transformers import Qwen2VLImageProcessorPil

    return Processor(None, Qwen2VLImageProcessorPil(min_pixels=EDGE**2, max_pixels=EDGE**2), config("qwen2_vl"))


@pytest.fixture
def paths(tmp_path):
    """Photos of noise, which has every colour value, with and without white borders."""
    paths, draw = DatasetPaths(tmp_path), np.random.default_rng(0)
    for item, size in (("a", (80, 60)), ("b", (30, 90)), ("c", (EDGE, EDGE))):
        path = paths.image(item)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path, quality=100)
    pl.DataFrame({"item": ["a", "b", "c"], "sha256": ["1", "2", "3"]}).write_parquet(paths.images_manifest)
    return paths


@pytest.mark.parametrize("make", [smolvlm, siglip, clip, qwen])
def test_cached_colours_convert_to_the_processors_values(paths, make):
    photos = photo_files(paths, ["a", "b", "c"], make())
    store = pixel_store(photos)
    rows = np.array([2, 0])
    expected, got = photos.load(rows), store.load(rows)
    assert store.values.dtype == np.uint8
    assert got.keys() == expected.keys()
    assert expected["pixel_values"].abs().max() > 0.9
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], atol=1e-6, rtol=0)


def test_the_array_is_cached_per_photos_and_processor(paths, monkeypatch):
    first = pixel_store(photo_files(paths, ["a", "b"], smolvlm()))
    monkeypatch.setattr("pixrec_core.models.photo_store.open_photo", None)
    again = pixel_store(photo_files(paths, ["a", "b"], smolvlm()))
    assert np.array_equal(first.values, again.values)
    with pytest.raises(TypeError):  # other photos are decoded
        pixel_store(photo_files(paths, ["b", "c"], smolvlm()))


def test_features_are_returned_unchanged(paths):
    features = PhotoStore(np.ones((2, 4, 8), dtype=np.float16))
    assert current_features(None, features) is features
    assert features.load(np.array([1]))["features"].dtype == torch.float32
