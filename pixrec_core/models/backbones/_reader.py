"""How a backbone's decoder reads a prompt in which photos stand among text.

A model's own `forward` takes pixels and looks for placeholders. Here features come from outside, encoded once an
item however often it stands in a batch, and each placeholder says which one it takes.
"""

from typing import Any

import torch
from torch import Tensor


class Reader:
    """Reads through the decoder of one backbone. Shapes: B rows, L tokens, H hidden size, J photos, K features a photo.

    A family overrides what its decoder wants besides embeddings; what it reads must equal what the
    model's own `forward` reads of the same prompt, and no state may depend on what follows it.

    Attributes:
        model: an image-text-to-text model of transformers.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def features(self, inputs: dict[str, Tensor], count: int) -> Tensor:
        """Features of `count` photos from `Processor.image_inputs`: (J, K, F), of which the first H are the embedding.

        Families answer with a list of (K, H), one (J, K, H) or one (J * K, H).
        """
        return self._joined(self.model.get_image_features(**inputs).pooler_output, count)

    def hidden_states(self, ids: Tensor, slots: Tensor, features: Tensor | None) -> Tensor:
        """Last hidden states of right-padded rows, (B, L, H).

        No attention mask is needed: padding follows what is read, and a causal model never looks ahead.

        Args:
            ids: (B, L) token ids.
            slots: (B, L) position of an image feature among all of the batch's; -1 for text.
            features: (J, K, F), or None where no row has an image.
        """
        ids = ids.masked_fill(slots >= 0, 0)  # a placeholder's id may lie past the vocabulary
        embeddings = self.model.get_input_embeddings()(ids)
        if features is not None:
            flat = features.flatten(0, 1)[:, : embeddings.shape[-1]].to(embeddings.dtype)
            embeddings = torch.where((slots >= 0)[..., None], flat[slots.clamp(min=0)], embeddings)
        decoder, extra = self.model.get_decoder(), self.decoder_inputs(slots, features)
        hidden: Tensor = decoder(inputs_embeds=embeddings, use_cache=False, **extra).last_hidden_state
        return hidden

    def decoder_inputs(self, _slots: Tensor, _features: Tensor | None) -> dict[str, Any]:
        """What the decoder wants besides embeddings, such as positions."""
        return {}

    def own_inputs(self, _is_image: Tensor) -> dict[str, Tensor]:
        """What the model's own `forward` wants besides ids and images to read a prompt as it is read here.

        Args:
            _is_image: (B, L) bool, which tokens are placeholders.
        """
        return {}

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the vocabulary after some hidden states, (..., V)."""
        scores: Tensor = self.model.get_output_embeddings()(hidden)
        return scores

    @staticmethod
    def _joined(features: Any, count: int) -> Tensor:
        if isinstance(features, list | tuple):
            features = torch.cat([f.reshape(-1, f.shape[-1]) for f in features])
        joined: Tensor = features.reshape(count, -1, features.shape[-1])
        return joined
