"""The tower of `user_encoder = "items"`: each item is encoded once, and the user's vector is made from item vectors.

The content of an item is either frozen features of its text and photo, or the mean hidden state of the backbone. One
linear map per role turns it into vectors: one as a candidate, one as part of a history. HLLM (arXiv 2409.12740) found
that a light user model over item vectors keeps the quality of a model that reads all tokens.

Shapes: I items, K features of a modality, D embedding size, B sequences of at most L items, M (history, target) pairs,
C keys, N items of the catalogue.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PreTrainedModel

from pixrec_core import losses
from pixrec_core.models.collate import Batch
from pixrec_core.models.dual_tower import DualTowerOutput, Tower, TowerConfig, allowed_negatives
from pixrec_core.models.user_encoders import create_user_encoder

#: Contents of items: (I, K) features by modality; a row of zeros for an item without it.
Contents = Mapping[str, Tensor]

MIN_ROWS = 2
#: Share of the highest variance that is added to each. Without it, and with 205 instead of 256 dimensions, multimodal
#: had .123/.064 instead of .161/.084 Recall@10/NDCG@10 on validation users of film ratings.
RIDGE = 0.01
CPU_TOKENS = 2_048  # padded tokens per pass of the backbone: its activations stay in the CPU's cache
ROWS = ("input_ids", "image_feature_index", "starts", "ends")  # inputs of a backbone, one row per item
BACKBONE = "backbone"  # the modality of hidden states; frozen features are of `text` and `photo`
DROPOUT = 0.1  # of contents; for photos the settings have another


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

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)


class Whitening(nn.Module):
    """Centres features and maps them to uncorrelated ones of similar variance, then to unit length.

    A ridge keeps the variance of directions that vary little low: they are mostly noise. From F (`raw_dim`) features it
    keeps the K (`dim`) directions of the highest variance.
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, raw_dim: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(raw_dim))
        self.register_buffer("matrix", torch.eye(dim, raw_dim))

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        """Set the map from the covariance of features (n, F); fewer than two rows leave it as it is."""
        if len(features) < MIN_ROWS:
            return
        self.mean.copy_(features.mean(0))
        centred = (features - self.mean).double()
        variances, directions = torch.linalg.eigh(centred.T @ centred / len(centred))
        size = len(self.matrix)
        scales = (variances.flip(0)[:size].clamp(min=0) + RIDGE * variances[-1]).rsqrt()
        self.matrix.copy_(directions.T.flip(0)[:size] * scales[:, None])

    def forward(self, features: Tensor) -> Tensor:
        """Map (n, F) to (n, K); a row of zeros, which is an unknown feature, stays zero."""
        known = features.abs().sum(dim=-1, keepdim=True) > 0
        return functional.normalize((features - self.mean) @ self.matrix.T, dim=-1) * known


class ContentHead(nn.Module):
    """Linear maps of all modalities to vectors, added.

    A gate multiplies each modality but the first. Gates start at zero: the head then equals one without these
    modalities.
    """

    def __init__(self, dims: Mapping[str, int], embedding_dim: int, dropout: Mapping[str, float]) -> None:
        super().__init__()
        self.maps = nn.ModuleDict({name: nn.Linear(dim, embedding_dim, bias=False) for name, dim in dims.items()})
        self.gates = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in list(dims)[1:]})
        self.dropout = dict(dropout)

    def forward(self, contents: Contents) -> Tensor:
        """Map contents to unit vectors (I, D)."""
        total: Tensor | float = 0.0
        for name, head in self.maps.items():
            content = functional.dropout(contents[name].float(), self.dropout[name], self.training)
            vectors = head(content).float()
            total = total + (self.gates[name] * vectors if name in self.gates else vectors)
        assert isinstance(total, Tensor), "an item has at least one modality"
        return functional.normalize(total, dim=-1)


class ItemsTower(Tower):
    """User and item vectors from item contents."""

    config_class = ItemsTowerConfig
    loss_terms = ("loss", "item_item", "user_item")

    def __init__(self, config: ItemsTowerConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config, backbone)
        sizes = config.feature_dims or {BACKBONE: config.backbone_config.get_text_config().hidden_size}
        dims = {name: sizes[name] for name in config.modalities}
        dropout = dict.fromkeys(dims, DROPOUT) | (config.feature_dropout or {})
        self.item_head = ContentHead(dims, config.embedding_dim, dropout)
        self.history_head = ContentHead(dims, config.embedding_dim, dropout)
        self.whitening = nn.ModuleDict({n: Whitening(raw, sizes[n]) for n, raw in (config.raw_dims or {}).items()})
        self.user_encoder = create_user_encoder(
            config.user_pooling, config.embedding_dim, config.max_history_len, config.dropout
        )
        self.post_init()
        self._keys_to_ignore_on_save = set(self.all_tied_weights_keys) if backbone is not None else None

    def heads(self) -> list[nn.Linear]:
        both = (self.item_head, self.history_head)
        return [each for head in both for each in head.maps.values() if isinstance(each, nn.Linear)]

    def fit_whitening(self, modality: str, features: Tensor) -> None:
        """Fit the whitening of a modality to features (n, F)."""
        whitening: Any = self.whitening[modality]
        whitening.fit(features.to(self.device))

    def whiten(self, modality: str, features: Tensor) -> Tensor:
        """Return features (n, F) of a modality as contents (n, K), on the model's device."""
        whitened: Tensor = self.whitening[modality](features.to(self.device))
        return whitened

    def contents(self, items: Batch) -> Contents:
        """Return the contents of a batch of items: of `FeatureTable.item_batch`, or of `Collator.item_batch`."""
        if self.backbone is None:
            contents: Contents = items["contents"]
            return contents
        photos, ids = self.photo_features(items["photos"]), items["input_ids"]
        size = max(1, CPU_TOKENS // ids.shape[1]) if self.device.type == "cpu" else len(ids)
        parts = [{name: items[name][start : start + size] for name in ROWS} for start in range(0, len(ids), size)]
        return {BACKBONE: torch.cat([self.item_states(part, photos) for part in parts])}

    def item_vectors(self, contents: Contents, numbers: Tensor, id_mask: Tensor | None = None) -> Tensor:
        """Return unit vectors (I, D) of items as candidates.

        Args:
            contents: contents of the items.
            numbers: (I,) item numbers.
            id_mask: (N, 1) from `ItemIdEmbedding.dropout_mask`.
        """
        return self._add_ids(self.item_head(contents), "candidate", numbers, id_mask)

    def history_vectors(self, contents: Contents, numbers: Tensor, id_mask: Tensor | None = None) -> Tensor:
        """Return unit vectors (I, D) of items as parts of a history; arguments as of `item_vectors`."""
        return self._add_ids(self.history_head(contents), "history", numbers, id_mask)

    def user_vectors(self, items: Tensor, times: Tensor, lengths: Tensor) -> Tensor:
        """Return unit vectors (B, D) of histories.

        Args:
            items: (B, L, D) `history_vectors` of their items, oldest first.
            times: (B, L) milliseconds.
            lengths: (B,) items of each history, at least one.
        """
        return functional.normalize(self.user_encoder.newest(items, times, lengths), dim=-1)

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
