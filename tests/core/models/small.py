"""A small catalogue with photos, and a tiny tower over it, for the model's tests."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import set_seed

from pixrec_core import prompts
from pixrec_core.models.backbones import Processor, tiny
from pixrec_core.models.collate import Collator
from pixrec_core.models.dual_tower import DualTower, DualTowerConfig
from pixrec_core.models.item_inputs import NO_PHOTO, ItemInputs, item_inputs
from pixrec_core.models.photo_store import PhotoStore

IMAGE_TOKENS = 4


def catalogue(count: int = 20) -> list[dict]:
    """Items of different text length; the first has no text at all, the second a very long one."""
    titles = ["", "long " * 400, *(f"Item number {n} " + "word " * (n % 5) for n in range(2, count))]
    return [
        {"title": t, "categories": ["Shop", f"Kind {n % 3}"] if n else [], "store": None, "features": [], "price": None}
        for n, t in enumerate(titles)
    ]


@dataclass
class Small:
    model: DualTower
    processor: Processor
    inputs: ItemInputs
    pixels: PhotoStore

    @property
    def collator(self) -> Collator:
        return Collator(self.inputs, self.processor, self.pixels.load)


def small(variant: str = "multimodal", count: int = 20, seed: int = 0, residual_items: int = 0) -> Small:
    """A tower with random weights; every fourth item has no photo."""
    set_seed(seed)
    items = catalogue(count)
    backbone, processor = tiny.create([prompts.item_text(item) for item in items])
    has_photo = np.arange(count) % 4 != 0
    rows = np.where(has_photo, np.cumsum(has_photo) - 1, NO_PHOTO)
    inputs = item_inputs(items, rows, processor, IMAGE_TOKENS, variant, 32)
    values = np.random.default_rng(0).normal(size=(int(has_photo.sum()), 1, 1, 3, tiny.EDGE, tiny.EDGE))
    config = DualTowerConfig(backbone_config=backbone.config, dimension=16, residual_items=residual_items)
    model = DualTower(config, backbone).eval()
    return Small(model, processor, inputs, PhotoStore(values.astype(np.float16), processor, "random"))


def vectors(model: DualTower, collator: Collator, numbers: list[int]) -> torch.Tensor:
    """v_T of some items in one batch."""
    batch = collator.items(numbers)
    return model.item_vectors(batch, model.photo_features(batch["photos"]))


def user_vectors(model: DualTower, collator: Collator, histories: list[list[int]]) -> torch.Tensor:
    """v_U of some histories in one batch."""
    batch = collator.histories(histories)
    return model.user_vectors(batch, model.photo_features(batch["photos"]))
