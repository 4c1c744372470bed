"""The layers of an items tower, and the tower of frozen features that serves.

This module needs torch and no transformers, whose import would double the time to a first recommendation.

Shapes: I items, F features of a modality and K whitened ones, D embedding size, B sequences of at most L items, N items
of the catalogue.
"""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pixrec_core import files
from pixrec_core.models.collate import Batch
from pixrec_core.models.user_encoders import create_user_encoder
from pixrec_core.pretrained import CONFIG, WEIGHTS

#: Contents of items: (I, K) features by modality; a row of zeros for an item without it.
Contents = Mapping[str, Tensor]

MIN_ROWS = 2
#: Share of the highest variance that is added to each. Without it, and with 205 instead of 256 dimensions, multimodal
#: had .123/.064 instead of .161/.084 Recall@10/NDCG@10 on validation users of film ratings.
RIDGE = 0.01
MIN_VARIANCE = 1e-9  # share of the mean square of the features; rounding errors have less
BACKBONE = "backbone"  # the modality of hidden states; frozen features are of `text` and `photo`
DROPOUT = 0.1  # of contents; for photos the settings have another


class ItemIdEmbedding(nn.Module):
    """Two learned vectors per item, added to its content vector: one as part of a history, one as a candidate.

    Vectors start at zero, so an item without training interactions keeps its content vector. Each training step drops
    both vectors of some items, so content vectors must be good alone too, as they are for cold items.

    `dropout` is the fraction (0 to 1) of the items without these vectors in a training step.
    """

    def __init__(self, num_items: int, embedding_dim: int, dropout: float) -> None:
        super().__init__()
        self.history = nn.Embedding(num_items, embedding_dim)
        self.candidate = nn.Embedding(num_items, embedding_dim)
        self.dropout = dropout

    def dropout_mask(self) -> Tensor | None:
        """(N, 1) zeros and ones for one training step; None outside training."""
        if not self.training:
            return None
        weight = self.history.weight
        return (torch.rand(len(weight), 1, device=weight.device) >= self.dropout).to(weight.dtype)

    @staticmethod
    def lookup(table: nn.Embedding, numbers: Tensor, mask: Tensor | None) -> Tensor:
        """Vectors (T, D) of item numbers (T,), multiplied by the dropout mask (N, 1) if there is one."""
        vectors: Tensor = table(numbers)
        return vectors if mask is None else vectors * mask[numbers]


def add_id_vectors(
    contents: Tensor, embedding: ItemIdEmbedding | None, table: str, numbers: Tensor, id_mask: Tensor | None
) -> Tensor:
    """Return unit vectors (I, D): unit content vectors plus id vectors, if there are any.

    Args:
        contents: (I, D).
        embedding: None: there are no id vectors.
        table: `history` or `candidate`.
        numbers: (I,) item numbers.
        id_mask: (N, 1) from `ItemIdEmbedding.dropout_mask`.
    """
    if embedding is None:
        return contents
    id_vectors = embedding.lookup(getattr(embedding, table), numbers, id_mask)
    return functional.normalize(contents + id_vectors, dim=-1)


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
        self.register_buffer("matrix", torch.zeros(dim, raw_dim).fill_diagonal_(1))

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        """Set the map from the covariance of features (n, F).

        Fewer than two rows, or rows that are all equal, as for titles that share no word, leave it as it is.
        """
        if len(features) < MIN_ROWS:
            return
        self.mean.copy_(features.mean(0))
        centred = (features - self.mean).double()
        variances, directions = torch.linalg.eigh(centred.T @ centred / len(centred))
        if variances[-1] <= MIN_VARIANCE * features.double().square().mean():
            self.mean.zero_()
            return
        size = len(self.matrix)
        scales = (variances.flip(0)[:size].clamp(min=0) + RIDGE * variances[-1]).rsqrt()
        self.matrix.copy_(directions.T.flip(0)[:size] * scales[:, None])

    def forward(self, features: Tensor) -> Tensor:
        """Map (n, F) to (n, K); a row of zeros, which is an unknown feature, stays zero."""
        known = features.abs().sum(dim=-1, keepdim=True) > 0
        return functional.normalize((features - self.mean) @ self.matrix.T, dim=-1).where(known, 0)


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


class ItemsLayers(nn.Module):
    """What training and serving of an items tower have in common."""

    config: Any
    backbone: Any
    item_id_embedding: ItemIdEmbedding | None

    if TYPE_CHECKING:  # that of nn.Module returns a tensor or module, which would hide the methods of transformers

        def __getattr__(self, name: str) -> Any: ...

    def _add_layers(self, sizes: Mapping[str, int]) -> None:
        """Create the layers that `config` describes; `sizes` are K by modality."""
        config = self.config
        dims = {name: sizes[name] for name in config.modalities}
        dropout = dict.fromkeys(dims, DROPOUT) | (config.feature_dropout or {})
        self.item_head = ContentHead(dims, config.embedding_dim, dropout)
        self.history_head = ContentHead(dims, config.embedding_dim, dropout)
        self.whitening = nn.ModuleDict({n: Whitening(raw, sizes[n]) for n, raw in (config.raw_dims or {}).items()})
        self.user_encoder = create_user_encoder(
            config.user_pooling, config.embedding_dim, config.max_history_len, config.dropout
        )

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def fit_whitening(self, modality: str, features: Tensor) -> None:
        """Fit the whitening of a modality to features (n, F)."""
        whitening: Any = self.whitening[modality]
        whitening.fit(features.to(self.device))

    def whiten(self, modality: str, features: Tensor) -> Tensor:
        """Return features (n, F) of a modality as contents (n, K), on the model's device."""
        whitened: Tensor = self.whitening[modality](features.to(self.device))
        return whitened

    def contents(self, items: Batch) -> Contents:
        """Return the contents of a batch of items of `FeatureTable.item_batch`."""
        contents: Contents = items["contents"]
        return contents

    def item_vectors(self, contents: Contents, numbers: Tensor, id_mask: Tensor | None = None) -> Tensor:
        """Return unit vectors (I, D) of items as candidates.

        Args:
            contents: contents of the items.
            numbers: (I,) item numbers.
            id_mask: (N, 1) from `ItemIdEmbedding.dropout_mask`.
        """
        return add_id_vectors(self.item_head(contents), self.item_id_embedding, "candidate", numbers, id_mask)

    def history_vectors(self, contents: Contents, numbers: Tensor, id_mask: Tensor | None = None) -> Tensor:
        """Return unit vectors (I, D) of items as parts of a history; arguments as of `item_vectors`."""
        return add_id_vectors(self.history_head(contents), self.item_id_embedding, "history", numbers, id_mask)

    def user_vectors(self, items: Tensor, times: Tensor, lengths: Tensor) -> Tensor:
        """Return unit vectors (B, D) of histories.

        Args:
            items: (B, L, D) `history_vectors` of their items, oldest first.
            times: (B, L) milliseconds.
            lengths: (B,) items of each history, at least one.
        """
        return functional.normalize(self.user_encoder.newest(items, times, lengths), dim=-1)


class _NoInitialisation(TorchFunctionMode):
    """Skips initialisations: on the meta device, some of them import torch's compiler, which takes a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return given["tensor"] if "tensor" in given else args[0]
        return func(*args, **given)


class FrozenItemsTower(ItemsLayers):
    """An `ItemsTower` over frozen features, for inference.

    `config` has the values of config.json as attributes.
    """

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.config, self.backbone, self.item_id_embedding = config, None, None
        if config.num_item_ids:
            self.item_id_embedding = ItemIdEmbedding(config.num_item_ids, config.embedding_dim, config.item_id_dropout)
        self._add_layers(config.feature_dims)

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        """Return the tower of a checkpoint folder.

        Its layers are created on PyTorch's meta device, where they take no memory, until the weights fit them.

        Raises:
            RuntimeError: the weights lack a tensor, have one too many, or have one of another shape.
        """
        with torch.device("meta"), _NoInitialisation():
            tower = cls(SimpleNamespace(**files.read_json(folder / CONFIG)))
        tower.load_state_dict(load_file(folder / WEIGHTS), assign=True)
        return tower
