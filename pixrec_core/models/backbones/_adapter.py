"""The decoder of a backbone, fed with token embeddings and precomputed image features.

A model's own `forward` takes pixels and encodes every image of a prompt. Here each photo of a batch is encoded once,
however often it occurs, and every image placeholder has the index of the feature that replaces its embedding.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import DynamicCache


class BackboneAdapter:
    """Runs the decoder of an image-text-to-text model of transformers.

    A family overrides the inputs of its decoder other than embeddings. Hidden states must equal those of the model's
    `forward` for the same prompt, and must not depend on later tokens.

    Shapes: B rows, L tokens, H hidden size, J photos, K features per photo.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        """Features (J, K, F) of photos from `Processor.image_inputs`; the first H of F are the embedding."""
        arguments = {name: value for name, value in inputs.items() if name != "count"}
        parts = self.feature_parts(self.model.get_image_features(**arguments))
        return torch.cat([_stack_photos(part, int(inputs["count"])) for part in parts], dim=-1)

    def feature_parts(self, output: Any) -> list[Any]:
        """The features in the output of `get_image_features` that the decoder takes, the embedding first."""
        return [output.pooler_output]

    def hidden_states(
        self, ids: Tensor, image_feature_index: Tensor, features: Tensor | None, cache: "DynamicCache | None" = None
    ) -> Tensor:
        """Last hidden states (B, L, H) of right-padded rows.

        There is no attention mask: the model is causal, so no token attends to the padding after it.

        Args:
            ids: (B, L) token ids.
            image_feature_index: (B, L) index of an image feature among the (J * K) of the batch; -1 for text.
            features: (J, K, F), or None if no row has an image.
            cache: an empty cache to fill with the keys and values of all tokens, for `cached_hidden_states`. It must
                be a plain `DynamicCache()`: one with a configuration drops tokens outside of a sliding window by their
                index in the cache, which is not their distance if several texts follow one prompt.
        """
        ids = ids.masked_fill(image_feature_index >= 0, 0)  # the id of a placeholder may not be in the vocabulary
        embeddings = self.model.get_input_embeddings()(ids)
        if features is not None:
            flat = features.flatten(0, 1)[:, : embeddings.shape[-1]].to(embeddings.dtype)
            embeddings = torch.where(
                (image_feature_index >= 0)[..., None], flat[image_feature_index.clamp(min=0)], embeddings
            )
        hidden: Tensor = self.model.get_decoder()(
            inputs_embeds=embeddings,
            **self.decoder_inputs(image_feature_index, features),
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        return hidden

    def cached_hidden_states(
        self, ids: Tensor, positions: Tensor, cache: "DynamicCache", visible: Tensor, distances: Tensor
    ) -> Tensor:
        """Last hidden states (B, W, H) of text tokens that follow the cached ones; they are added to the cache.

        Args:
            ids: (B, W) token ids.
            positions: (B, W) `next_positions`, plus the number of tokens between the prompt and each token.
            cache: P tokens per row.
            visible: (B, W, P + W) bool, the cached and new tokens that each token attends to, itself included.
            distances: (B, W, P + W) number of tokens from each of those to the token.
        """
        hidden: Tensor = self.model.get_decoder()(
            inputs_embeds=self.model.get_input_embeddings()(ids),
            attention_mask=self._attention_mask(visible, distances),
            position_ids=self.position_ids(positions),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return hidden

    def _attention_mask(self, visible: Tensor, distances: Tensor) -> Tensor | dict[str, Tensor]:
        """Additive mask (B, 1, W, P + W); a dictionary by layer type if some layers have a sliding window."""

        def additive(mask: Tensor) -> Tensor:
            zero = torch.zeros((), dtype=self.model.dtype, device=mask.device)
            return torch.where(mask, zero, torch.finfo(zero.dtype).min)[:, None]

        config = self.model.config.get_text_config()
        if "sliding_attention" not in (getattr(config, "layer_types", None) or ()):
            return additive(visible)
        near = visible & (distances < config.sliding_window)
        return {"full_attention": additive(visible), "sliding_attention": additive(near)}

    def next_positions(self, _image_feature_index: Tensor, _features: Tensor | None, ends: Tensor) -> Tensor:
        """Position (B,) of a text token after the first `ends` (B,) tokens of the rows of `hidden_states`."""
        return ends

    def position_ids(self, positions: Tensor) -> Tensor:
        """Positions (B, W) of text tokens in the shape that the decoder takes."""
        return positions

    def decoder_inputs(self, _image_feature_index: Tensor, _features: Tensor | None) -> dict[str, Any]:
        """Further arguments of the decoder, such as positions."""
        return {}

    def native_forward_kwargs(self, _is_image: Tensor) -> dict[str, Tensor]:
        """Arguments that make the model's `forward` equal to this adapter; `_is_image` (B, L) marks placeholders."""
        return {}

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of the next token after hidden states (..., H)."""
        scores: Tensor = self.model.get_output_embeddings()(hidden)
        return scores


def _stack_photos(features: Any, count: int) -> Tensor:
    """(J, K, H), from what a family returns: a list of (K, H), one (J, K, H) or one (J * K, H)."""
    if isinstance(features, list | tuple):
        features = torch.cat([f.reshape(-1, f.shape[-1]) for f in features])
    stacked: Tensor = features.reshape(count, -1, features.shape[-1])
    return stacked
