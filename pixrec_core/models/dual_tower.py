"""The dual tower: one causal vision-language backbone reads histories and items into one vector space.

Shapes: B rows, L tokens, H hidden size, D vector size, I distinct items, J photos, K features a
photo, M (history, target) pairs of a batch.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.logging import disable_progress_bar

from pixrec_core import losses
from pixrec_core.models.backbones._processor import image_features
from pixrec_core.models.collate import Batch

disable_progress_bar()  # a checkpoint is one shard; bars of one step would only break up progress lines


class DualTowerConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers is untyped
    """Configuration of a `DualTower`; the backbone's stands inside it."""

    model_type = "pixrec_dual_tower"
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012  # read by transformers

    def __init__(
        self,
        backbone_config: Any = None,
        dimension: int = 128,
        tau: float = 0.07,
        weight_item_item: float = 0.125,
        weight_user_item: float = 0.3,
        **kwargs: Any,
    ) -> None:
        if isinstance(backbone_config, dict):
            fields = dict(backbone_config)
            backbone_config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        self.backbone_config = backbone_config
        self.dimension = dimension
        self.tau = tau
        self.weight_item_item = weight_item_item
        self.weight_user_item = weight_user_item
        # The base class would reset the backbone's attention to none, which is neither SDPA nor causal.
        kwargs.setdefault("attn_implementation", getattr(backbone_config, "_attn_implementation", None))
        super().__init__(**kwargs)


@dataclass
class DualTowerOutput(ModelOutput):  # type: ignore[misc]
    """Losses of a batch, each a scalar: the mixed one and its three terms."""

    loss: Tensor | None = None
    generation: Tensor | None = None
    item_item: Tensor | None = None
    user_item: Tensor | None = None


class DualTower(PreTrainedModel):  # type: ignore[misc]
    """User and item vectors from one backbone (PixRec, section 3; CALRec, section 3.2)."""

    config_class = DualTowerConfig
    base_model_prefix = "dual_tower"
    supports_gradient_checkpointing = True
    _supports_sdpa = True  # attention is the backbone's alone

    def __init__(self, config: DualTowerConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if backbone is None:
            backbone = AutoModelForImageTextToText.from_config(config.backbone_config)
        self.backbone = backbone
        hidden = config.backbone_config.get_text_config().hidden_size
        self.user_head = nn.Linear(hidden, config.dimension)
        self.item_head = nn.Linear(hidden, config.dimension)
        self.post_init()
        # Saved once, under the name that they are tied to; without this the Trainer warns of what it did not miss.
        self._keys_to_ignore_on_save = set(self.all_tied_weights_keys)

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise the heads; the backbone brings or initialises its own weights."""
        if module is self.user_head or module is self.item_head:
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)
        elif isinstance(module, PreTrainedModel):
            return
        else:
            self.backbone._init_weights(module)

    def vision_parameters(self) -> list[nn.Parameter]:
        """All weights that an image passes before the language model."""
        language = [self.backbone.get_decoder(), self.backbone.get_output_embeddings()]
        known = {id(parameter) for part in language for parameter in part.parameters()}
        return [parameter for parameter in self.backbone.parameters() if id(parameter) not in known]

    def vision_hash(self) -> str:
        """Names the state of the vision tower: SHA-256 of its weights."""
        digest = hashlib.sha256()
        for parameter in self.vision_parameters():
            digest.update(parameter.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()

    def photo_features(self, photos: dict[str, Tensor]) -> Tensor | None:
        """Features of the photos of a batch, (J, K, H): given, or computed from pixels; None without photos."""
        if not photos:
            return None
        if "features" in photos:
            return photos["features"]
        inputs = {name: value for name, value in photos.items() if name != "count"}
        return image_features(self.backbone, inputs, int(photos["count"]))

    def hidden_states(self, ids: Tensor, slots: Tensor, features: Tensor | None) -> Tensor:
        """Last hidden states of right-padded rows, (B, L, H).

        No attention mask is needed: padding follows what is read, and a causal model never looks ahead.

        Args:
            ids: (B, L) token ids.
            slots: (B, L) position of an image feature among all of the batch's; -1 for text.
            features: (J, K, H), or None where no row has an image.
        """
        embeddings = self.backbone.get_input_embeddings()(ids)
        if features is not None:
            flat = features.reshape(-1, features.shape[-1]).to(embeddings.dtype)
            embeddings = torch.where((slots >= 0)[..., None], flat[slots.clamp(min=0)], embeddings)
        hidden: Tensor = self.backbone.get_decoder()(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        return hidden

    def item_vectors(self, items: Batch, features: Tensor | None) -> Tensor:
        """v_T, (I, D): each item read alone, from a batch of `Collator.items`."""
        hidden = self.hidden_states(items["ids"], items["slots"], features)
        rows = torch.arange(len(hidden), device=hidden.device)
        return self._project(self.item_head, span_means(hidden, rows, items["starts"], items["ends"]))

    def user_vectors(self, ids: Tensor, slots: Tensor, ends: Tensor, features: Tensor | None) -> Tensor:
        """v_U, (B, D): each history read to its end.

        Args:
            ids: (B, L) token ids of the histories.
            slots: (B, L) as in `hidden_states`.
            ends: (B,) tokens of each history.
            features: as in `hidden_states`.
        """
        hidden = self.hidden_states(ids, slots, features)
        rows = torch.arange(len(hidden), device=hidden.device)
        return self._project(self.user_head, span_means(hidden, rows, torch.zeros_like(ends), ends))

    def forward(self, **batch: Any) -> DualTowerOutput:
        """Losses of a training batch of `Collator.__call__`; all prefixes of a window in one pass."""
        features = self.photo_features(batch["photos"])
        items = {name: batch[f"item_{name}"] for name in ("ids", "slots", "starts", "ends")}
        keys = self.item_vectors(items, features)
        hidden = self.hidden_states(batch["history_ids"], batch["history_slots"], features)

        rows, (history_ends, starts, ends) = batch["pair_rows"], batch["pair_spans"].unbind(1)
        firsts, lasts = torch.cat([torch.zeros_like(starts), starts]), torch.cat([history_ends, ends])
        history_means, target_means = span_means(hidden, rows.repeat(2), firsts, lasts).chunk(2)
        user = self._project(self.user_head, history_means)
        target = self._project(self.item_head, target_means)

        config = self.config
        item_item = losses.info_nce(target, keys, batch["pair_targets"], batch["negatives"], config.tau)
        user_item = losses.info_nce(user, keys, batch["pair_targets"], batch["negatives"], config.tau)
        generation = self._generation(hidden, batch)
        loss = losses.mix(generation, item_item, user_item, config.weight_item_item, config.weight_user_item)
        return DualTowerOutput(loss, generation.detach(), item_item.detach(), user_item.detach())

    def _generation(self, hidden: Tensor, batch: Batch) -> Tensor:
        """L_NIG; the language-model head only where there is a token to predict, from the position before it."""
        rows, positions = batch["label_rows"], batch["label_positions"]
        logits = self.backbone.get_output_embeddings()(hidden[rows, positions - 1])
        return losses.next_item_generation(logits, batch["history_ids"][rows, positions])

    @staticmethod
    def _project(head: nn.Linear, pooled: Tensor) -> Tensor:
        return functional.normalize(head(pooled.to(head.weight.dtype)).float(), dim=-1)


def span_means(hidden: Tensor, rows: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """Mean hidden state of token ranges, by one cumulative sum over all of them.

    Args:
        hidden: (B, L, H).
        rows: (M,) which row each range lies in.
        starts: (M,) first token of each range.
        ends: (M,) first token after it; greater than `starts`.

    Returns:
        (M, H) in float32.
    """
    sums = functional.pad(hidden.float().cumsum(1), (0, 0, 1, 0))
    return (sums[rows, ends] - sums[rows, starts]) / (ends - starts)[:, None]


# So that `AutoConfig` reads a checkpoint folder's config.json, which its tokenizer and image processor need,
# and `AutoModel` the whole of it.
AutoConfig.register(DualTowerConfig.model_type, DualTowerConfig)
AutoModel.register(DualTowerConfig, DualTower)
