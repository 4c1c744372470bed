"""Decoding of many texts after a shared prompt, with one key-value cache entry per prompt.

All texts after one prompt share its row; a mask selects the tokens that each token attends to. So a prompt is encoded
once and never copied, and texts share their common beginning. `generate` of transformers would copy the keys and values
of a prompt for every beam.

Shapes: B prompts of at most L tokens, W tokens decoded in one call, S tokens decoded before it, V vocabulary, H hidden
size.
"""

import torch
from torch import Tensor
from transformers import DynamicCache

from pixrec_core.models.collate import Batch
from pixrec_core.models.dual_tower import DualTower


class Continuation:
    """A key-value cache of encoded prompts and of the tokens decoded after them.

    Attributes:
        logits: (B, V) of the first token after each prompt.

    Args:
        model: dual tower; its backbone decodes.
        prompts: from `Collator.generation_prompts`, on the model's device.
    """

    def __init__(self, model: DualTower, prompts: Batch) -> None:
        self._adapter = model.adapter
        ids, image_feature_index = prompts["input_ids"], prompts["image_feature_index"]
        lengths = prompts["lengths"]
        features = model.photo_features(prompts["photos"])
        self._cache = DynamicCache()
        hidden = self._adapter.hidden_states(ids, image_feature_index, features, self._cache)
        self.logits = self._adapter.logits(hidden[torch.arange(len(ids), device=ids.device), lengths - 1])
        self._first_positions = self._adapter.next_positions(image_feature_index, features, lengths)
        self._lengths = lengths
        self._indices = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)  # of each token in its text
        self._is_prompt = self._indices < lengths[:, None]  # False for padding

    def read(self, ids: Tensor, depths: Tensor, follows: Tensor) -> Tensor:
        """Hidden states (B, W, H) of tokens after the prompts, which are added to the cache.

        Args:
            ids: (B, W) token ids.
            depths: (B, W) number of tokens between the prompt and each token.
            follows: (B, W, S + W) bool, the decoded tokens that belong to the text of each token, itself included.
        """
        indices = self._lengths[:, None] + depths
        self._indices = torch.cat([self._indices, indices], dim=1)
        is_prompt = self._is_prompt[:, None].expand(-1, ids.shape[1], -1)
        visible = torch.cat([is_prompt, follows], dim=2)
        distances = indices[..., None] - self._indices[:, None]
        positions = self._first_positions[:, None] + depths
        return self._adapter.cached_hidden_states(ids, positions, self._cache, visible, distances)

    def crop_cache(self) -> None:
        """Remove all tokens after the prompts from the cache."""
        length = self._is_prompt.shape[1]
        self._cache.crop(length - self._indices.shape[1])
        self._indices = self._indices[:, :length]

    def scores(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of the next token after hidden states (..., H)."""
        return self._adapter.logits(hidden)
