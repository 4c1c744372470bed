"""A small catalogue with photos, and a small dual tower over it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import set_seed

from pixrec_core import prompts, schemas
from pixrec_core.models.backbones import Processor, tiny
from pixrec_core.models.collate import Collator
from pixrec_core.models.dual_tower import DualTower, DualTowerConfig
from pixrec_core.models.item_inputs import NO_PHOTO, ItemInputs, item_inputs
from pixrec_core.models.photo_store import PhotoStore


def catalogue(count: int = 20) -> list[dict]:
    """Items with texts of different lengths: the first has none, the second a very long one."""
    titles = ["", "long " * 400, *(f"Item number {n} " + "word " * (n % 5) for n in range(2, count))]
    return [
        dict.fromkeys(schemas.ITEM_SCHEMA) | {"title": t, "categories": ["Shop", f"Kind {n % 3}"] if n else []}
        for n, t in enumerate(titles)
    ]


@dataclass(eq=False)
class Small:
    model: DualTower
    processor: Processor
    inputs: ItemInputs
    pixels: PhotoStore

    @property
    def collator(self) -> Collator:
        return Collator(self.inputs, self.processor, self.pixels.load)


def small(variant: str = "multimodal", count: int = 20, seed: int = 0) -> Small:
    """A dual tower with random weights on the backbone `tiny`."""
    set_seed(seed)
    return tower_on(*tiny.create([prompts.item_text(item) for item in catalogue(count)]), variant, count)


def tower_on(backbone: Any, processor: Processor, variant: str = "multimodal", count: int = 20) -> Small:
    """A dual tower on any backbone; every fourth item has no photo, and all photos differ."""
    has_photo = np.arange(count) % 4 != 0
    rows = np.where(has_photo, np.cumsum(has_photo) - 1, NO_PHOTO)
    draw, size = np.random.default_rng(0), (processor.edge, processor.edge, 3)
    photos = [Image.fromarray(draw.integers(0, 256, size, dtype=np.uint8)) for _ in range(has_photo.sum())]
    values = np.stack([processor.pixels(photo).numpy() for photo in photos]).astype(np.float16)
    pixels = PhotoStore(values, processor)
    model = DualTower(DualTowerConfig(backbone_config=backbone.config, embedding_dim=16), backbone).eval()
    with torch.no_grad():
        image_tokens = model.photo_features(pixels.load(np.array([0]))).shape[1]
    inputs = item_inputs(catalogue(count), rows, processor, image_tokens, variant, 32)
    return Small(model, processor, inputs, pixels)


def vectors(model: DualTower, collator: Collator, numbers: list[int]) -> torch.Tensor:
    """v_T of some items in one batch."""
    batch = collator.item_batch(numbers)
    return model.item_vectors(batch, model.photo_features(batch["photos"]))


def user_vectors(model: DualTower, collator: Collator, histories: list[list[int]]) -> torch.Tensor:
    """v_U of some histories in one batch."""
    batch = collator.history_batch(histories)
    return model.user_vectors(batch, model.photo_features(batch["photos"]))
