"""How a backbone's decoder reads a prompt in which photos stand among text.

A model's own `forward` takes pixels and looks for placeholders. Here features come from outside, encoded once an
item however often it stands in a batch, and each placeholder says which one it takes.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


class BackboneAdapter:
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

    def hidden_states(self, ids: Tensor, image_feature_index: Tensor, features: Tensor | None) -> Tensor:
        """Last hidden states of right-padded rows, (B, L, H).

        No attention mask is needed: padding follows what is read, and a causal model never looks ahead.

        Args:
            ids: (B, L) token ids.
            image_feature_index: (B, L) position of an image feature among all of the batch's; -1 for text.
            features: (J, K, F), or None where no row has an image.
        """
        hidden: Tensor = self._read(ids, image_feature_index, features, use_cache=False).last_hidden_state
        return hidden

    def remembered_states(
        self, ids: Tensor, image_feature_index: Tensor, features: Tensor | None
    ) -> tuple[Tensor, DynamicCache]:
        """`hidden_states`, and the keys and values of every token, for others to be read after them.

        The cache is told nothing of the configuration: one that knows of sliding windows drops what lies before them,
        by places that texts side by side do not have.
        """
        output = self._read(ids, image_feature_index, features, use_cache=True, past_key_values=DynamicCache())
        return output.last_hidden_state, output.past_key_values

    def _read(self, ids: Tensor, image_feature_index: Tensor, features: Tensor | None, **options: Any) -> Any:
        ids = ids.masked_fill(image_feature_index >= 0, 0)  # a placeholder's id may lie past the vocabulary
        embeddings = self.model.get_input_embeddings()(ids)
        if features is not None:
            flat = features.flatten(0, 1)[:, : embeddings.shape[-1]].to(embeddings.dtype)
            embeddings = torch.where(
                (image_feature_index >= 0)[..., None], flat[image_feature_index.clamp(min=0)], embeddings
            )
        return self.model.get_decoder()(
            inputs_embeds=embeddings, **self.decoder_inputs(image_feature_index, features), **options
        )

    def following_states(
        self, ids: Tensor, positions: Tensor, cache: DynamicCache, visible: Tensor, distances: Tensor
    ) -> Tensor:
        """Last hidden states of text tokens that follow what `cache` holds, (B, W, H). The cache grows by them.

        Args:
            ids: (B, W) token ids.
            positions: (B, W) from `next_positions`, further on by what stands between.
            cache: of P tokens a row.
            visible: (B, W, P + W) bool, which tokens each one sees: of the P before and of these, itself among them.
            distances: (B, W, P + W) how many tokens each of those lies before it.
        """
        hidden: Tensor = self.model.get_decoder()(
            inputs_embeds=self.model.get_input_embeddings()(ids),
            attention_mask=self._masks(visible, distances),
            position_ids=self.position_ids(positions),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return hidden

    def _masks(self, visible: Tensor, distances: Tensor) -> Any:
        """Numbers to add to attention, (B, 1, W, P + W); by kind of layer where some see a sliding window only."""
        config = self.model.config.get_text_config()
        if "sliding_attention" not in (getattr(config, "layer_types", None) or ()):
            return self._mask(visible)
        near = visible & (distances < config.sliding_window)
        return {"full_attention": self._mask(visible), "sliding_attention": self._mask(near)}

    def _mask(self, visible: Tensor) -> Tensor:
        none = torch.zeros((), dtype=self.model.dtype, device=visible.device)
        return torch.where(visible, none, torch.finfo(none.dtype).min)[:, None]

    def next_positions(self, _slots: Tensor, _features: Tensor | None, ends: Tensor) -> Tensor:
        """Position of a word that follows the first `ends` (B,) tokens of rows as `hidden_states` reads them, (B,)."""
        return ends

    def position_ids(self, positions: Tensor) -> Tensor:
        """Positions of words, (B, W), as the decoder wants them."""
        return positions

    def decoder_inputs(self, _slots: Tensor, _features: Tensor | None) -> dict[str, Any]:
        """What the decoder wants besides embeddings, such as positions."""
        return {}

    def native_forward_kwargs(self, _is_image: Tensor) -> dict[str, Tensor]:
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
