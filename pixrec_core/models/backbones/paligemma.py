"""PaliGemma (Gemma) and PaliGemma 2 (Gemma 2), with causal attention.

The family was trained with bidirectional attention over image and question, and with images before all text. PixRec
needs causal attention, so that a prefix does not depend on later items, and images between text. Fine-tuning has to
adapt the model to both.

Gemma's embedding layer multiplies token embeddings by sqrt(H); image features are not multiplied.
"""

from typing import Any

import torch
from torch import Tensor

from pixrec_core.models.backbones._adapter import BackboneAdapter
from pixrec_core.models.backbones._processor import Processor

MODEL_TYPES = ("paligemma",)

FamilyProcessor = Processor


class FamilyAdapter(BackboneAdapter):
    """Causal attention, and the soft cap on Gemma 2's logits."""

    def decoder_inputs(self, _image_feature_index: Tensor, _features: Tensor | None) -> dict[str, Any]:
        """Overrides `use_bidirectional_attention` of the configuration."""
        return {"is_causal": True}

    def native_forward_kwargs(self, is_image: Tensor) -> dict[str, Tensor]:
        """Marks the whole prompt as suffix, over which `forward` is causal."""
        return {"token_type_ids": torch.ones_like(is_image, dtype=torch.long)}

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits within (-cap, cap) for Gemma 2; Gemma has no cap."""
        scores = super().logits(hidden)
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return scores if cap is None else cap * torch.tanh(scores / cap)
