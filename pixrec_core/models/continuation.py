"""Texts read on after prompts that are read once.

All texts that follow one prompt stand side by side in its row, and a mask says which tokens each one follows. So a
prompt is neither read again nor copied for each of its texts, and texts that begin alike are read once up to where
they part. Batches of padded rows, which `generate` of transformers works on, would copy the keys and values of the
prompt for every beam at every step.

Shapes: B prompts of at most L tokens, W tokens read at a time, S read so far after each prompt, V vocabulary, H hidden
size.
"""

import torch
from torch import Tensor

from pixrec_core.models.collate import Batch
from pixrec_core.models.dual_tower import DualTower


class Continuation:
    """Prompts that have been read, and whatever is read after them.

    Attributes:
        logits: (B, V) scores of the first token after each prompt.

    Args:
        model: reads them.
        prompts: a batch of `Collator.openings`, on the model's device.
    """

    def __init__(self, model: DualTower, prompts: Batch) -> None:
        self._reader = model.adapter
        ids, image_feature_index, ends = prompts["ids"], prompts["image_feature_index"], prompts["ends"]
        features = model.photo_features(prompts["photos"])
        hidden, self._cache = self._reader.remembered_states(ids, image_feature_index, features)
        self.logits = self._reader.logits(hidden[torch.arange(len(ids), device=ids.device), ends - 1])
        self._first_positions = self._reader.next_positions(image_feature_index, features, ends)
        self._ends = ends
        places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        self._is_prompt = places < ends[:, None]  # what follows is padding, which nobody sees
        self._places = places

    def read(self, ids: Tensor, depths: Tensor, follows: Tensor) -> Tensor:
        """Hidden states of tokens after the prompts, (B, W, H).

        Args:
            ids: (B, W) token ids.
            depths: (B, W) how many tokens stand between the prompt and each one.
            follows: (B, W, S + W) bool, which tokens after the prompt each one's text holds, itself among them.
        """
        places = self._ends[:, None] + depths
        self._places = torch.cat([self._places, places], dim=1)
        is_prompt = self._is_prompt[:, None].expand(-1, ids.shape[1], -1)
        visible = torch.cat([is_prompt, follows], dim=2)
        distances = places[..., None] - self._places[:, None]
        positions = self._first_positions[:, None] + depths
        return self._reader.following_states(ids, positions, self._cache, visible, distances)

    def crop_cache(self) -> None:
        """Let everything after the prompts go, as if it had never been read."""
        length = self._is_prompt.shape[1]
        self._cache.crop(length - self._places.shape[1])
        self._places = self._places[:, :length]

    def scores(self, hidden: Tensor) -> Tensor:
        """Logits of what follows some hidden states, (..., V)."""
        return self._reader.logits(hidden)
