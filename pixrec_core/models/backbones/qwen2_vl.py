"""Qwen2-VL and Qwen2.5-VL: positions in time, height and width (M-RoPE; arXiv 2409.12191, section 2.1)."""

import math
from typing import Any

import torch
from torch import Tensor

from pixrec_core.models.backbones._adapter import BackboneAdapter
from pixrec_core.models.backbones._processor import Processor

MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl")

FamilyProcessor = Processor


class FamilyAdapter(BackboneAdapter):
    """Gives the decoder the positions that the model's `get_rope_index` would give."""

    def decoder_inputs(self, image_feature_index: Tensor, features: Tensor | None) -> dict[str, Any]:
        """Positions: the decoder alone would count image tokens like words."""
        return {"position_ids": _positions(image_feature_index, features)}

    def next_positions(self, image_feature_index: Tensor, features: Tensor | None, ends: Tensor) -> Tensor:
        """One step past the last token, a word, on all three axes alike."""
        rows = torch.arange(len(ends), device=ends.device)
        return _positions(image_feature_index, features)[0, rows, ends - 1] + 1

    def position_ids(self, positions: Tensor) -> Tensor:
        """The same in time, row and column, (3, B, W)."""
        return positions.expand(3, -1, -1)

    def native_forward_kwargs(self, is_image: Tensor) -> dict[str, Tensor]:
        """Which tokens are of an image, from which `forward` takes positions."""
        return {"mm_token_type_ids": is_image.int()}


def _positions(image_feature_index: Tensor, features: Tensor | None) -> Tensor:
    return positions(image_feature_index, 1 if features is None else features.shape[1])


def positions(image_feature_index: Tensor, image_tokens: int) -> Tensor:
    """Time, row and column of every token, (3, B, L), for square images.

    A word is one step further on all three axes. The tokens of an image share the time at which it starts, their
    rows and columns count from there, and what follows stands one side of the image later. A token's position
    depends on nothing that follows it, so a prefix has the same positions alone and within a window.

    Args:
        image_feature_index: (B, L) position of an image feature among all of the batch's; -1 for text.
        image_tokens: K, features of one photo.
    """
    side = math.isqrt(image_tokens)
    assert side * side == image_tokens, "photos are padded to squares"
    place = image_feature_index.clamp(min=0) % image_tokens  # within its own image
    past_image = torch.where(place == image_tokens - 1, side, 0)
    steps = torch.where(image_feature_index >= 0, past_image, 1)
    start = steps.cumsum(1) - steps
    return torch.stack([start, start + place // side, start + place % side])
