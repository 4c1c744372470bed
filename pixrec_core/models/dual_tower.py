"""The dual tower: one causal vision-language backbone encodes histories and items into one vector space.

Shapes: B rows, L tokens, H hidden size, D embedding size, I distinct items, J photos, K features per photo of F numbers
each, M (history, target) pairs of a batch, T items of its histories one after the other, C keys, N items.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.logging import disable_progress_bar

from pixrec_core import losses
from pixrec_core.data.sequences import catalogue_digest
from pixrec_core.models.backbones import BackboneAdapter, adapter_of
from pixrec_core.models.collate import Batch
from pixrec_core.models.items_layers import ItemIdEmbedding, add_id_vectors
from pixrec_core.models.process_group import all_gather_with_grad, broadcast_from_rank0
from pixrec_core.pretrained import load_pretrained

disable_progress_bar()  # a checkpoint is one shard; progress bars of one step would break up log lines


class TowerConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers is untyped
    """Configuration of both towers: the backbone, the item-id embedding and the objective.

    Attributes:
        num_item_ids: items of the catalogue that have id vectors; 0 without them.
        catalogue: digest of these items (`data.sequences.catalogue_digest`); empty for checkpoints of older versions.
        seen_offset: added to the cosine of an item of the history, 0 or less. A history is most similar to its items,
            but few users choose one of them next; EASE has zeros on its diagonal for the same reason.
    """

    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012  # read by transformers

    backbone_config: Any = None
    embedding_dim: int = 128
    tau: float = 0.07
    weight_item_item: float = 0.125
    weight_user_item: float = 0.8
    num_item_ids: int = 0
    catalogue: str = ""
    item_id_dropout: float = 0.5
    seen_offset: float = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.backbone_config, dict):
            self.backbone_config = AutoConfig.for_model(**self.backbone_config)
        # The base class would set one attention implementation for all parts of the backbone, which may need different
        # ones (Gemma 2 does not support SDPA). The empty dictionary keeps the choice of each part.
        kwargs.setdefault("attn_implementation", {"backbone_config": {}})
        super().__post_init__(**kwargs)


class DualTowerConfig(TowerConfig):
    """Configuration of a `DualTower`, which contains that of its backbone."""

    model_type = "pixrec_dual_tower"


@dataclass
class DualTowerOutput(ModelOutput):  # type: ignore[misc]
    """Scalar losses of a batch: the mixed loss and its terms. With several ranks, the contribution of this rank."""

    loss: Tensor | None = None
    generation: Tensor | None = None
    item_item: Tensor | None = None
    user_item: Tensor | None = None


class Tower(PreTrainedModel):  # type: ignore[misc]  # transformers is untyped
    """Base class of both towers: an optional backbone, item-id embeddings, and checked loading."""

    base_model_prefix = "dual_tower"
    supports_gradient_checkpointing = True
    _supports_sdpa = True  # only the backbone has attention implementations
    #: Names of the losses that `forward` returns; the first one is minimised.
    loss_terms: ClassVar[tuple[str, ...]]
    adapter: BackboneAdapter  # of the backbone, if there is one

    def __init__(self, config: Any, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if backbone is None and config.backbone_config is not None:
            backbone = AutoModelForImageTextToText.from_config(config.backbone_config)
        self.backbone: Any = backbone
        if backbone is not None:
            self.adapter = adapter_of(backbone)
        self.item_id_embedding: ItemIdEmbedding | None = None
        if config.num_item_ids:
            self.item_id_embedding = ItemIdEmbedding(config.num_item_ids, config.embedding_dim, config.item_id_dropout)

    @classmethod
    def from_pretrained(cls, folder: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """The model of a checkpoint folder, as transformers loads it.

        Raises:
            CheckpointError: the weights lack a tensor, have one too many, or have one of another shape; or the folder
                is unsafe. See `pretrained.load_pretrained`.
        """
        model, info = load_pretrained(super().from_pretrained, Path(folder), *args, **kwargs)
        return (model, info) if output_loading_info else model

    def add_item_id_embedding(self, item_ids: pl.Series, dropout: float) -> None:
        """Add an `ItemIdEmbedding` of zeros for the items (N,) of a catalogue, in its order."""
        self.config.num_item_ids, self.config.item_id_dropout = len(item_ids), dropout
        self.config.catalogue = catalogue_digest(item_ids)
        self.item_id_embedding = ItemIdEmbedding(len(item_ids), self.config.embedding_dim, dropout)
        self.item_id_embedding.apply(self._init_weights)
        self.item_id_embedding.to(self.device)

    def heads(self) -> list[nn.Linear]:
        """Linear maps from features to vectors."""
        raise NotImplementedError

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise the heads and the item-id embedding; the backbone initialises its weights itself.

        Heads of both roles start as the same orthogonal matrix, which preserves angles: an untrained model ranks items
        by the similarity of their content to the history. Independent heads would have to learn that first.
        """
        if isinstance(module, nn.Linear) and any(module is head for head in self.heads()):
            nn.init.orthogonal_(module.weight, generator=torch.Generator().manual_seed(torch.initial_seed()))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif self.item_id_embedding and module in {self.item_id_embedding.history, self.item_id_embedding.candidate}:
            nn.init.zeros_(module.weight)
        elif isinstance(module, PreTrainedModel):
            return
        elif self.backbone is not None:
            self.backbone._init_weights(module)

    def vision_parameters(self) -> list[nn.Parameter]:
        """Weights of the vision tower and of the projection into the language model."""
        language = [self.backbone.get_decoder(), self.backbone.get_output_embeddings()]
        language_ids = {id(parameter) for part in language for parameter in part.parameters()}
        return [parameter for parameter in self.backbone.parameters() if id(parameter) not in language_ids]

    def vision_hash(self) -> str:
        """SHA-256 of the weights of the vision tower."""
        digest = hashlib.sha256()
        for parameter in self.vision_parameters():
            digest.update(parameter.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()

    def photo_features(self, photos: dict[str, Tensor]) -> Tensor | None:
        """Features (J, K, F) of the photos of a batch, from pixels unless given; None without photos.

        Args:
            photos: either `features` (J, K, F), or from `Processor.image_inputs`.
        """
        if not photos:
            return None
        return photos["features"] if "features" in photos else self.adapter.features(photos)

    def hidden_states(self, ids: Tensor, image_feature_index: Tensor, features: Tensor | None) -> Tensor:
        """Last hidden states (B, L, H) of right-padded rows: see `BackboneAdapter.hidden_states`."""
        return self.adapter.hidden_states(ids, image_feature_index, features)

    def item_states(self, items: Batch, features: Tensor | None) -> Tensor:
        """Mean hidden states (I, H) of items of `Collator.item_batch`; `features` (J, K, F) from `photo_features`."""
        hidden = self.hidden_states(items["input_ids"], items["image_feature_index"], features)
        rows = torch.arange(len(hidden), device=hidden.device)
        return span_means(hidden, rows, items["starts"], items["ends"])


class DualTower(Tower):
    """User and item vectors from one backbone, which reads whole histories (PixRec, section 3; CALRec, section 3.2)."""

    config_class = DualTowerConfig
    loss_terms = ("loss", "generation", "item_item", "user_item")

    def __init__(self, config: DualTowerConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config, backbone)
        hidden = config.backbone_config.get_text_config().hidden_size
        self.user_head = nn.Linear(hidden, config.embedding_dim)
        self.item_head = nn.Linear(hidden, config.embedding_dim)
        self.post_init()
        # Tied weights are saved once, under the name that they are tied to. Without this, the Trainer warns that the
        # other names are missing.
        self._keys_to_ignore_on_save = set(self.all_tied_weights_keys)

    def heads(self) -> list[nn.Linear]:
        return [self.user_head, self.item_head]

    def item_vectors(self, items: Batch, features: Tensor | None, id_mask: Tensor | None = None) -> Tensor:
        """v_T, (I, D): unit vectors of items; arguments as of `item_states` and `add_id_vectors`."""
        contents = self._project(self.item_head, self.item_states(items, features))
        return add_id_vectors(contents, self.item_id_embedding, "candidate", items["numbers"], id_mask)

    def user_vectors(self, histories: Batch, features: Tensor | None) -> Tensor:
        """v_U, (B, D): unit vectors of histories from `Collator.history_batch`."""
        hidden = self.hidden_states(histories["input_ids"], histories["image_feature_index"], features)
        lengths = histories["lengths"]
        rows = torch.arange(len(hidden), device=hidden.device)
        contents = self._project(self.user_head, span_means(hidden, rows, torch.zeros_like(lengths), lengths))
        return self._add_history_ids(contents, histories["numbers"], histories["item_ranges"])

    def forward(self, **batch: Any) -> DualTowerOutput:
        """Losses of a training batch of `Collator.__call__`; one pass encodes all prefixes of a window."""
        features = self.photo_features(batch["photos"])
        id_mask = broadcast_from_rank0(self.item_id_embedding.dropout_mask()) if self.item_id_embedding else None
        names = ("input_ids", "image_feature_index", "starts", "ends", "numbers")
        items = {name: batch[f"item_{name}"] for name in names}
        keys = all_gather_with_grad(self.item_vectors(items, features, id_mask), batch["keys_per_rank"])
        hidden = self.hidden_states(batch["history_input_ids"], batch["history_image_feature_index"], features)

        rows, (history_ends, starts, ends) = batch["pair_rows"], batch["pair_spans"].unbind(1)
        span_starts, span_ends = torch.cat([torch.zeros_like(starts), starts]), torch.cat([history_ends, ends])
        history_means, target_means = span_means(hidden, rows.repeat(2), span_starts, span_ends).chunk(2)
        user = self._add_history_ids(
            self._project(self.user_head, history_means), batch["history_numbers"], batch["pair_item_ranges"], id_mask
        )
        target = self._project(self.item_head, target_means)

        config, targets, offsets, count = self.config, batch["pair_targets"], batch["key_offsets"], batch["pair_count"]
        negatives = allowed_negatives(batch["excluded"], batch["key_numbers"], len(targets))
        item_item = losses.info_nce(target, keys, targets, negatives, config.tau, offsets, count)
        user_item = losses.info_nce(user, keys, targets, negatives, config.tau, offsets, count)
        generation = self._generation(hidden, batch)
        loss = losses.mix(generation, item_item, user_item, config.weight_item_item, config.weight_user_item)
        return DualTowerOutput(loss, generation.detach(), item_item.detach(), user_item.detach())

    def _add_history_ids(
        self, contents: Tensor, numbers: Tensor, item_ranges: Tensor, id_mask: Tensor | None = None
    ) -> Tensor:
        """Unit vectors (M, D): content vectors (M, D) of histories plus the mean id vector of their items.

        `item_ranges` (M, 2) are the start and end of each history in `numbers` (T,), the item numbers of all of them.
        """
        if self.item_id_embedding is None:
            return contents
        id_vectors = self.item_id_embedding.lookup(self.item_id_embedding.history, numbers, id_mask)[None]
        means = span_means(id_vectors, torch.zeros_like(item_ranges[:, 0]), *item_ranges.unbind(1))
        return functional.normalize(contents + means, dim=-1)

    def _generation(self, hidden: Tensor, batch: Batch) -> Tensor:
        """L_NIG; computes logits only at positions before a text token of a target."""
        rows, positions = batch["label_rows"], batch["label_positions"]
        logits = self.adapter.logits(hidden[rows, positions - 1])
        return losses.next_item_generation(logits, batch["history_input_ids"][rows, positions], batch["label_count"])

    @staticmethod
    def _project(head: nn.Linear, pooled: Tensor) -> Tensor:
        return functional.normalize(head(pooled.to(head.weight.dtype)).float(), dim=-1)


def span_means(hidden: Tensor, rows: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """Mean hidden states of token ranges, from one cumulative sum.

    Args:
        hidden: (B, L, H).
        rows: (M,) row of each range.
        starts: (M,) first token of each range.
        ends: (M,) first token after each range; greater than `starts`.

    Returns:
        (M, H) in float32.
    """
    sums = functional.pad(hidden.float().cumsum(1), (0, 0, 1, 0))
    return (sums[rows, ends] - sums[rows, starts]) / (ends - starts)[:, None]


def allowed_negatives(excluded: Tensor, key_numbers: Tensor, num_pairs: int) -> Tensor:
    """Mask (M, C) bool of the keys that may be negatives of each pair.

    Args:
        excluded: (E, 2) a pair and the number of an item that is not a negative of it.
        key_numbers: (C,) distinct item numbers of the keys.
        num_pairs: M.
    """
    allowed = torch.ones(num_pairs, len(key_numbers), dtype=torch.bool, device=key_numbers.device)
    size = int(torch.cat([key_numbers, excluded[:, 1]]).max()) + 1
    key_index = torch.full((size,), -1, device=key_numbers.device)  # of an item number; -1: not a key
    key_index[key_numbers] = torch.arange(len(key_numbers), device=key_numbers.device)
    pairs, keys = excluded[:, 0], key_index[excluded[:, 1]]
    allowed[pairs[keys >= 0], keys[keys >= 0]] = False
    return allowed


# AutoConfig needs the registration for config.json (also to load a tokenizer or image processor from the folder),
# AutoModel for the weights.
AutoConfig.register(DualTowerConfig.model_type, DualTowerConfig)
AutoModel.register(DualTowerConfig, DualTower)
