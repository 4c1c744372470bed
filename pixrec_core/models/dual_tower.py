"""The dual tower: one causal vision-language backbone reads histories and items into one vector space.

Shapes: B rows, L tokens, H hidden size, D vector size, I distinct items, J photos, K features a
photo of F numbers each, M (history, target) pairs of a batch, T items of its histories laid end to end.
"""

import copy
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
from pixrec_core.errors import CheckpointError
from pixrec_core.models.backbones import adapter_of
from pixrec_core.models.checkpoint import device
from pixrec_core.models.collate import Batch
from pixrec_core.models.process_group import all_gather_with_grad, broadcast_from_rank0

disable_progress_bar()  # a checkpoint is one shard; bars of one step would only break up progress lines

#: Weights whose names differ in checkpoints of earlier versions: pattern of the old name, new name.
RENAMED_WEIGHTS = {r"^residual\.": "item_id_embedding."}


class DualTowerConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers is untyped
    """Configuration of a `DualTower`; the backbone's stands inside it."""

    model_type = "pixrec_dual_tower"
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012  # read by transformers
    #: Names in checkpoints of earlier versions.
    attribute_map = {  # noqa: RUF012
        "dimension": "embedding_dim",
        "residual_items": "num_item_ids",
        "residual_dropout": "item_id_dropout",
    }

    def __init__(
        self,
        backbone_config: Any = None,
        embedding_dim: int = 128,
        tau: float = 0.07,
        weight_item_item: float = 0.125,
        weight_user_item: float = 0.8,
        num_item_ids: int = 0,
        item_id_dropout: float = 0.5,
        **kwargs: Any,
    ) -> None:
        if isinstance(backbone_config, dict):
            fields = dict(backbone_config)
            backbone_config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        self.backbone_config = backbone_config
        self.embedding_dim = embedding_dim
        self.tau = tau
        self.weight_item_item = weight_item_item
        self.weight_user_item = weight_user_item
        self.num_item_ids = num_item_ids
        self.item_id_dropout = item_id_dropout
        # The base class would lay one attention over the backbone and its parts, which may differ (Gemma 2 knows no
        # SDPA), or none, which is not causal. An empty choice keeps each part's own.
        kwargs.setdefault("attn_implementation", {"backbone_config": {}})
        super().__init__(**kwargs)


class ItemIdEmbedding(nn.Module):
    """Two learned vectors an item, added to its content vector: one where it is read in a history, one where ranked.

    They start at zero, so content leads and an item that never occurs in training keeps to its
    content. In each step some items lose both, so that content alone must serve as well: else what
    is learnt of warm items would be missing where a cold one stands.

    Args:
        items: N, of the catalogue.
        embedding_dim: D.
        dropout: share of the items (0 to 1) that go without in a training step.
    """

    def __init__(self, items: int, embedding_dim: int, dropout: float) -> None:
        super().__init__()
        self.history = nn.Embedding(items, embedding_dim)
        self.candidate = nn.Embedding(items, embedding_dim)
        self.dropout = dropout

    def dropout_mask(self) -> Tensor | None:
        """(N, 1) of zeros and ones, drawn for one step; None outside training, where every item keeps its own."""
        if not self.training:
            return None
        weight = self.history.weight
        return (torch.rand(len(weight), 1, device=weight.device) >= self.dropout).to(weight.dtype)

    @staticmethod
    def lookup(table: nn.Embedding, numbers: Tensor, kept: Tensor | None) -> Tensor:
        """(T, D) rows of a table for (T,) item numbers, zero for those that are not kept."""
        vectors: Tensor = table(numbers)
        return vectors if kept is None else vectors * kept[numbers]


@dataclass
class DualTowerOutput(ModelOutput):  # type: ignore[misc]
    """Losses of a batch, or what one process's share of it adds to them, each a scalar: the mixed one and its terms."""

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
        self.adapter = adapter_of(backbone)
        hidden = config.backbone_config.get_text_config().hidden_size
        self.user_head = nn.Linear(hidden, config.embedding_dim)
        self.item_head = nn.Linear(hidden, config.embedding_dim)
        items = config.num_item_ids
        self.item_id_embedding = ItemIdEmbedding(items, config.embedding_dim, config.item_id_dropout) if items else None
        self.post_init()
        # Saved once, under the name that they are tied to; without this the Trainer warns of what it did not miss.
        self._keys_to_ignore_on_save = set(self.all_tied_weights_keys)

    @classmethod
    def from_pretrained(cls, folder: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """The model of a checkpoint folder, as transformers loads it; checkpoints of earlier versions load too.

        Raises:
            CheckpointError: the weights lack a tensor, have one too many, or have one of another shape. transformers
                would only warn and draw random values.
        """
        kwargs = {"key_mapping": RENAMED_WEIGHTS, "ignore_mismatched_sizes": True} | kwargs
        model, info = super().from_pretrained(folder, *args, output_loading_info=True, **kwargs)
        problems = [f"{name} is missing" for name in sorted(info["missing_keys"])]
        problems += [f"{name} is unexpected" for name in sorted(info["unexpected_keys"])]
        problems += [
            f"{name} has shape {tuple(found)} in place of {tuple(expected)}"
            for name, found, expected in sorted(info["mismatched_keys"])
        ]
        if problems:
            shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
            raise CheckpointError(
                f"the weights in {folder} do not fit its config.json: {shown}. Restore the folder, or train again"
            )
        return (model, info) if output_loading_info else model

    def add_item_id_embedding(self, items: int, dropout: float) -> None:
        """Let each of `items` items of a catalogue learn a vector of its own; it starts at zero."""
        self.config.num_item_ids, self.config.item_id_dropout = items, dropout
        self.item_id_embedding = ItemIdEmbedding(items, self.config.embedding_dim, dropout)
        self.item_id_embedding.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise the heads and the residual; the backbone brings or initialises its own weights.

        Both heads start alike, and keep angles: at first the items nearest to a history are those that read like
        it. From two heads drawn apart, a training has to find that out.
        """
        if module is self.user_head or module is self.item_head:
            nn.init.orthogonal_(module.weight, generator=torch.Generator().manual_seed(torch.initial_seed()))
            nn.init.zeros_(module.bias)
        elif self.item_id_embedding and module in {self.item_id_embedding.history, self.item_id_embedding.candidate}:
            nn.init.zeros_(module.weight)
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
        """Features of the photos of a batch, (J, K, F): given, or computed from pixels; None without photos."""
        if not photos:
            return None
        if "features" in photos:
            return photos["features"]
        inputs = {name: value for name, value in photos.items() if name != "count"}
        return self.adapter.features(inputs, int(photos["count"]))

    def hidden_states(self, ids: Tensor, image_feature_index: Tensor, features: Tensor | None) -> Tensor:
        """Last hidden states of right-padded rows, (B, L, H): see `BackboneAdapter.hidden_states`."""
        return self.adapter.hidden_states(ids, image_feature_index, features)

    def item_vectors(self, items: Batch, features: Tensor | None, kept: Tensor | None = None) -> Tensor:
        """v_T, (I, D): each item read alone, from a batch of `Collator.items`.

        Args:
            items: the batch.
            features: as in `BackboneAdapter.hidden_states`.
            kept: see `ItemIdEmbedding.kept`.
        """
        hidden = self.hidden_states(items["ids"], items["image_feature_index"], features)
        rows = torch.arange(len(hidden), device=hidden.device)
        contents = self._project(self.item_head, span_means(hidden, rows, items["starts"], items["ends"]))
        if self.item_id_embedding is None:
            return contents
        residuals = self.item_id_embedding.lookup(self.item_id_embedding.candidate, items["numbers"], kept)
        return functional.normalize(contents + residuals, dim=-1)

    def user_vectors(self, histories: Batch, features: Tensor | None) -> Tensor:
        """v_U, (B, D): each history read to its end, from a batch of `Collator.histories`."""
        hidden = self.hidden_states(histories["ids"], histories["image_feature_index"], features)
        ends = histories["ends"]
        rows = torch.arange(len(hidden), device=hidden.device)
        contents = self._project(self.user_head, span_means(hidden, rows, torch.zeros_like(ends), ends))
        return self._with_histories(contents, histories["numbers"], histories["places"])

    def forward(self, **batch: Any) -> DualTowerOutput:
        """Losses of a training batch of `Collator.__call__`; all prefixes of a window in one pass."""
        features = self.photo_features(batch["photos"])
        kept = broadcast_from_rank0(self.item_id_embedding.dropout_mask()) if self.item_id_embedding else None
        items = {name: batch[f"item_{name}"] for name in ("ids", "image_feature_index", "starts", "ends", "numbers")}
        keys = all_gather_with_grad(self.item_vectors(items, features, kept), batch["key_counts"])
        hidden = self.hidden_states(batch["history_ids"], batch["history_image_feature_index"], features)

        rows, (history_ends, starts, ends) = batch["pair_rows"], batch["pair_spans"].unbind(1)
        firsts, lasts = torch.cat([torch.zeros_like(starts), starts]), torch.cat([history_ends, ends])
        history_means, target_means = span_means(hidden, rows.repeat(2), firsts, lasts).chunk(2)
        user = self._with_histories(
            self._project(self.user_head, history_means), batch["history_numbers"], batch["pair_places"], kept
        )
        target = self._project(self.item_head, target_means)

        config, answers, offsets, count = self.config, batch["pair_targets"], batch["key_offsets"], batch["pair_count"]
        negatives = allowed_negatives(batch["excluded"], batch["key_numbers"], len(answers))
        item_item = losses.info_nce(target, keys, answers, negatives, config.tau, offsets, count)
        user_item = losses.info_nce(user, keys, answers, negatives, config.tau, offsets, count)
        generation = self._generation(hidden, batch)
        loss = losses.mix(generation, item_item, user_item, config.weight_item_item, config.weight_user_item)
        return DualTowerOutput(loss, generation.detach(), item_item.detach(), user_item.detach())

    def _with_histories(self, contents: Tensor, numbers: Tensor, places: Tensor, kept: Tensor | None = None) -> Tensor:
        """Contents of histories with the mean residual of their items.

        Args:
            contents: (M, D).
            numbers: (T,) items of all histories.
            places: (M, 2) which of them each history holds: the first, and the one past the last.
            kept: see `ItemIdEmbedding.kept`.
        """
        if self.item_id_embedding is None:
            return contents
        residuals = self.item_id_embedding.lookup(self.item_id_embedding.history, numbers, kept)[None]
        means = span_means(residuals, torch.zeros_like(places[:, 0]), *places.unbind(1))
        return functional.normalize(contents + means, dim=-1)

    def _generation(self, hidden: Tensor, batch: Batch) -> Tensor:
        """L_NIG; the language-model head only where there is a token to predict, from the position before it."""
        rows, positions = batch["label_rows"], batch["label_positions"]
        logits = self.adapter.logits(hidden[rows, positions - 1])
        return losses.next_item_generation(logits, batch["history_ids"][rows, positions], batch["label_count"])

    @staticmethod
    def _project(head: nn.Linear, pooled: Tensor) -> Tensor:
        return functional.normalize(head(pooled.to(head.weight.dtype)).float(), dim=-1)


class DevicePickle:
    """Base of what has a `model`: on arrival that moves to the GPU, if there is one.

    It computes there with as many threads as where it came from: how a sum is parted among threads shows in its last
    bits, and a worker's vectors are to be those of the process that it works for.
    """

    model: DualTower

    def __getstate__(self) -> dict[str, Any]:
        model = self.model if self.model.device.type == "cpu" else copy.deepcopy(self.model).cpu()
        return {**self.__dict__, "model": model, "threads": torch.get_num_threads()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        torch.set_num_threads(state.pop("threads"))
        self.__dict__.update(state)
        self.model.to(device())


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


def allowed_negatives(excluded: Tensor, numbers: Tensor, pairs: int) -> Tensor:
    """Which keys may count against each pair, (M, C) bool.

    Args:
        excluded: (E, 2) a pair and the number of an item that must not count against it.
        numbers: (C,) items of the keys, all different.
        pairs: M.
    """
    allowed = torch.ones(pairs, len(numbers), dtype=torch.bool, device=numbers.device)
    places = torch.full((int(torch.cat([numbers, excluded[:, 1]]).max()) + 1,), -1, device=numbers.device)
    places[numbers] = torch.arange(len(numbers), device=numbers.device)
    rows, columns = excluded[:, 0], places[excluded[:, 1]]
    allowed[rows[columns >= 0], columns[columns >= 0]] = False
    return allowed


# So that `AutoConfig` reads a checkpoint folder's config.json, which its tokenizer and image processor need,
# and `AutoModel` the whole of it.
AutoConfig.register(DualTowerConfig.model_type, DualTowerConfig)
AutoModel.register(DualTowerConfig, DualTower)
