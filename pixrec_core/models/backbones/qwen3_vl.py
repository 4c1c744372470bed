"""Qwen3-VL: Qwen2-VL's positions, and image features for the first decoder layers (DeepStack, arXiv 2406.04334)."""

from typing import Any

import torch
from torch import Tensor

from pixrec_core.models.backbones import qwen2_vl
from pixrec_core.models.backbones._processor import Processor

MODEL_TYPES = ("qwen3_vl",)

FamilyProcessor = Processor


class FamilyAdapter(qwen2_vl.FamilyAdapter):
    """Appends DeepStack features to the image embeddings, so that the features of a photo are one array."""

    def feature_parts(self, output: Any) -> list[Any]:
        """The embedding, then the features that are added after each of the first layers."""
        return [output.pooler_output, *output.deepstack_features]

    def decoder_inputs(self, image_feature_index: Tensor, features: Tensor | None) -> dict[str, Any]:
        """M-RoPE positions, and the DeepStack features of every placeholder."""
        inputs = super().decoder_inputs(image_feature_index, features)
        if features is None:
            return inputs
        is_image = image_feature_index >= 0
        hidden = self.model.config.get_text_config().hidden_size
        deepstack = torch.split(features.flatten(0, 1)[image_feature_index[is_image], hidden:], hidden, dim=-1)
        return inputs | {"visual_pos_masks": is_image, "deepstack_visual_embeds": deepstack}
