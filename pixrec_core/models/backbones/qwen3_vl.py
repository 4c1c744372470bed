"""Qwen3-VL: Qwen2-VL's positions, and image features for the first decoder layers too (DeepStack, arXiv 2406.04334)."""

from typing import Any

import torch
from torch import Tensor

from pixrec_core.models.backbones import qwen2_vl
from pixrec_core.models.backbones._processor import Processor

MODEL_TYPES = ("qwen3_vl",)

FamilyProcessor = Processor


class FamilyAdapter(qwen2_vl.FamilyAdapter):
    """Carries DeepStack's features behind the embedding, so that a photo is still one array."""

    def features(self, inputs: dict[str, Tensor], count: int) -> Tensor:
        """(J, K, H * (1 + layers)): the embedding, then what is added after each of the first layers."""
        output = self.model.get_image_features(**inputs)
        every = [output.pooler_output, *output.deepstack_features]
        return torch.cat([self._joined(features, count) for features in every], dim=-1)

    def decoder_inputs(self, image_feature_index: Tensor, features: Tensor | None) -> dict[str, Any]:
        """Positions, and the deeper features of every placeholder."""
        inputs = super().decoder_inputs(image_feature_index, features)
        if features is None:
            return inputs
        is_image = image_feature_index >= 0
        width = self.model.config.get_text_config().hidden_size
        deeper = torch.split(features.flatten(0, 1)[image_feature_index[is_image], width:], width, dim=-1)
        return inputs | {"visual_pos_masks": is_image, "deepstack_visual_embeds": deeper}
