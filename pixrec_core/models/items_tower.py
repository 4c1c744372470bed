"""The tower of `user_encoder = "items"`: each item is encoded once, and the user's vector is made from item vectors.

The content of an item is either frozen features of its text and photo, or the mean hidden state of the backbone. One
linear map per role turns it into vectors: one as a candidate, one as part of a history. HLLM (arXiv 2409.12740) found
that a light user model over item vectors keeps the quality of a model that reads all tokens.

Shapes: I items, K features of a modality, D embedding size, B sequences of at most L items, M (history, target) pairs,
C keys, N items of the catalogue.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PreTrainedModel

from pixrec_core import losses
from pixrec_core.models.collate import Batch
from pixrec_core.models.dual_tower import DualTowerOutput, Tower, TowerConfig, allowed_negatives
from pixrec_core.models.items_layers import BACKBONE, Contents, ItemsLayers

CPU_TOKENS = 2_048  # padded tokens per pass of the backbone: its activations stay in the CPU's cache
ROWS = ("input_ids", "image_feature_index", "starts", "ends")  # inputs of a backbone, one row per item


class ItemsTowerConfig(TowerConfig):
    """Configuration of an `ItemsTower`.

    Attributes:
        modalities: modalities of the contents; the first one is always read, the others through a gate.
        feature_dims: K of each modality of frozen features, whitened; None with a backbone.
        raw_dims: F of the same modalities before whitening.
        backbone_config: None with frozen features.
        reads_photos: whether contents depend on photos.
        feature_dropout: dropout of contents by modality; `DROPOUT` for others.
        dropout: dropout of a network in the user encoder.
        ties: whether the other items of the same time belong to the history of a target in training.
    """

    model_type = "pixrec_items_tower"

    modalities: Any = (BACKBONE,)
    feature_dims: Any = None
    raw_dims: Any = None
    reads_photos: bool = False
    embedding_dim: int = 256
    user_pooling: str = "mean"
    max_history_len: int = 50
    feature_dropout: Any = None
    dropout: float = 0.1
    ties: bool = False
    tau: float = 0.1
    weight_item_item: float = 0.0
    weight_user_item: float = 1.0


class ItemsTower(Tower, ItemsLayers):
    """User and item vectors from item contents."""

    config_class = ItemsTowerConfig
    loss_terms = ("loss", "item_item", "user_item")

    def __init__(self, config: ItemsTowerConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config, backbone)
        self._add_layers(config.feature_dims or {BACKBONE: config.backbone_config.get_text_config().hidden_size})
        self.post_init()
        self._keys_to_ignore_on_save = set(self.all_tied_weights_keys) if backbone is not None else None

    def heads(self) -> list[nn.Linear]:
        both = (self.item_head, self.history_head)
        return [each for head in both for each in head.maps.values() if isinstance(each, nn.Linear)]

    def contents(self, items: Batch) -> Contents:
        """Return the contents of a batch of items: of `FeatureTable.item_batch`, or of `Collator.item_batch`."""
        if self.backbone is None:
            return super().contents(items)
        photos, ids = self.photo_features(items["photos"]), items["input_ids"]
        size = max(1, CPU_TOKENS // ids.shape[1]) if self.device.type == "cpu" else len(ids)
        parts = [{name: items[name][start : start + size] for name in ROWS} for start in range(0, len(ids), size)]
        return {BACKBONE: torch.cat([self.item_states(part, photos) for part in parts])}

    def forward(self, **batch: Any) -> DualTowerOutput:
        """Return the losses of a training batch of `ItemsCollator`."""
        config, numbers = self.config, batch["key_numbers"]
        contents = self.contents(batch["items"])
        id_mask = self.item_id_embedding.dropout_mask() if self.item_id_embedding else None
        keys = self.item_vectors(contents, numbers, id_mask)
        count = batch["history_keys"]
        in_history = self.history_vectors({n: c[:count] for n, c in contents.items()}, numbers[:count], id_mask)
        windows = functional.embedding(batch["window_items"], in_history)
        rows, columns = batch["pairs"].unbind(1)
        before = self.user_encoder.before_each(windows, batch["times"], batch["lengths"], ties=config.ties)
        user = functional.normalize(before[rows, columns], dim=-1)
        negatives = allowed_negatives(batch["excluded"], numbers, len(rows))
        common = keys, batch["pair_targets"], negatives, config.tau, batch["key_offsets"]
        user_item = losses.info_nce(user, *common)
        item_item = torch.zeros_like(user_item)
        if config.weight_item_item:
            item_item = losses.info_nce(windows[rows, columns], *common)
        loss = config.weight_item_item * item_item + config.weight_user_item * user_item
        return DualTowerOutput(loss, None, item_item.detach(), user_item.detach())


AutoConfig.register(ItemsTowerConfig.model_type, ItemsTowerConfig)
AutoModel.register(ItemsTowerConfig, ItemsTower)
