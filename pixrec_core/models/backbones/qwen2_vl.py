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
    """Gives the decoder the positions of the model's `get_rope_index`."""

    def decoder_inputs(self, image_feature_index: Tensor, features: Tensor | None) -> dict[str, Any]:
        """M-RoPE positions; without them the decoder would number image tokens like text tokens."""
        return {"position_ids": mrope_positions(image_feature_index, features)}

    def next_positions(self, image_feature_index: Tensor, features: Tensor | None, ends: Tensor) -> Tensor:
        """One more than the position of the last token, which is a text token and has one position on all axes."""
        rows = torch.arange(len(ends), device=ends.device)
        return mrope_positions(image_feature_index, features)[0, rows, ends - 1] + 1

    def position_ids(self, positions: Tensor) -> Tensor:
        """The same positions in time, height and width, (3, B, W)."""
        return positions.expand(3, -1, -1)

    def native_forward_kwargs(self, is_image: Tensor) -> dict[str, Tensor]:
        """Marks image tokens, from which `forward` computes positions."""
        return {"mm_token_type_ids": is_image.int()}


def mrope_positions(image_feature_index: Tensor, features: Tensor | None) -> Tensor:
    """Position of every token in time, height and width, (3, B, L), for square images.

    A text token advances all three by one. All tokens of an image have the time at which it starts; height and width
    count rows and columns from there, and the token after the image is one edge length later. No position depends on
    a later token, so a prefix has the same positions alone and within a window.

    Args:
        image_feature_index: (B, L) index of an image feature among the (J * K) of the batch; -1 for text.
        features: (J, K, F), or None if no row has an image.
    """
    image_tokens = 1 if features is None else features.shape[1]
    edge = math.isqrt(image_tokens)
    assert edge * edge == image_tokens, "photos are padded to squares"
    index = image_feature_index.clamp(min=0) % image_tokens  # within the image
    advance = torch.where(image_feature_index < 0, 1, torch.where(index == image_tokens - 1, edge, 0))
    start = advance.cumsum(1) - advance
    return torch.stack([start, start + index // edge, start + index % edge])
