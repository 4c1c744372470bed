"""PaliGemma (Gemma) and PaliGemma 2 (Gemma 2), read causally.

The family was trained with attention in both directions over its prefix, image and question. A prefix here must not
see what follows it, so every token attends backwards only, as the family's answers do. The placeholders stand where
the photo stands in the text, where the family saw images before all text; fine-tuning has to bridge both.

Gemma multiplies token embeddings by sqrt(H) inside its embedding layer, and image features not at all.
"""

from typing import Any

import torch
from torch import Tensor

from pixrec_core.models.backbones._adapter import BackboneAdapter
from pixrec_core.models.backbones._processor import Processor

MODEL_TYPES = ("paligemma",)

FamilyProcessor = Processor


class FamilyAdapter(BackboneAdapter):
    """Keeps attention causal and Gemma 2's logits capped."""

    def decoder_inputs(self, _slots: Tensor, _features: Tensor | None) -> dict[str, Any]:
        """Causal: without it, `use_bidirectional_attention` of the configuration lets SDPA see the future."""
        return {"is_causal": True}

    def native_forward_kwargs(self, is_image: Tensor) -> dict[str, Tensor]:
        """The whole prompt as suffix, which `forward` reads causally."""
        return {"token_type_ids": torch.ones_like(is_image, dtype=torch.long)}

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores as Gemma 2 gives them, squeezed into (-cap, cap); Gemma names no cap."""
        scores = super().logits(hidden)
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return scores if cap is None else cap * torch.tanh(scores / cap)
