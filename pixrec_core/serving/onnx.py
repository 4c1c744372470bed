"""Hand-over of a promoted tower as ONNX: the item encoder, the user encoder, and the vectors of the catalogue.

Both graphs are checked against PyTorch before the folder appears. They run in onnxruntime, without PixRec and PyTorch.
"""

import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from pixrec_core import files
from pixrec_core.errors import ArtefactError, QueryError, SettingsError
from pixrec_core.paths import PromotedPaths
from pixrec_core.retrieval.encode import load_encoder
from pixrec_core.retrieval.items_encoder import ItemsEncoder
from pixrec_core.schemas import DAY_MS, ITEM
from pixrec_core.serving.export import MANIFEST, check_output, choose_tower
from pixrec_core.serving.promotion import parts_of_method, read_promotion, verify_promotion
from pixrec_core.stages import Stats

if TYPE_CHECKING:
    import torch

    from pixrec_core.models.items_tower import ItemsTower

ITEM_ENCODER: Final = "item_encoder.onnx"
USER_ENCODER: Final = "user_encoder.onnx"
VECTORS: Final = "items.parquet"
TOLERANCE: Final = 1e-4  # of unit vectors, per number
OPSET: Final = 18
CHECKED: Final = 7  # items and users of the check; not the number of the trace


def export_onnx(folder: PromotedPaths, output: Path, method: str | None = None) -> Stats:
    """Write both encoders and the vectors of all items. The folder appears complete or not at all.

    Args:
        folder: the promoted folder.
        output: folder to write; replaces an earlier export.
        method: a dual tower; by default the best one on validation.

    Returns:
        The manifest: origin, inputs and outputs of both graphs, and the largest difference from PyTorch.

    Raises:
        MissingArtefactError: nothing has been promoted.
        ArtefactError: a promoted file is damaged, or a graph gives other vectors than PyTorch.
        QueryError: the method has not been promoted, is no dual tower, or reads tokens.
        SettingsError: `output` exists and is no earlier export, or the extra `onnx` is not installed.
    """
    _require_packages()
    check_output(output, {ITEM_ENCODER, USER_ENCODER, VECTORS, MANIFEST})
    promotion = read_promotion(folder)
    name = choose_tower(promotion, method)
    copies = verify_promotion(folder, promotion, parts_of_method(promotion, name)).variant(name)
    encoder, _ = load_encoder(copies)
    if not isinstance(encoder, ItemsEncoder) or encoder.model.backbone is not None:
        raise QueryError(
            f"{name} of {promotion.dataset} reads tokens with a backbone, which is not exported; export a tower with "
            "model.user_encoder = `items` and model.item_encoder = `frozen`"
        )
    model, vectors, histories = encoder.model.cpu(), encoder.candidate_vectors, encoder.history_vectors
    with files.replacing(output) as temporary:
        temporary.mkdir()
        differences = {
            "item_encoder": _export_item_encoder(model, temporary / ITEM_ENCODER),
            "user_encoder": _export_user_encoder(model, temporary / USER_ENCODER, histories),
        }
        columns = {ITEM: encoder.items, "vector": np.array(vectors), "history_vector": np.array(histories)}
        pl.DataFrame(columns).write_parquet(temporary / VECTORS)
        manifest = {
            "dataset": promotion.dataset,
            "method": name,
            "promoted_at": promotion.promoted_at,
            "checkpoint_sha256": promotion.checkpoint_sha256[name],
            "exported_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "items": len(encoder.items),
            "dimension": vectors.shape[1],
            "max_history_len": model.config.max_history_len,
            "seen_offset": model.config.seen_offset,
            "features": dict(model.config.raw_dims),
            "max_difference": differences,
        }
        files.write_json(temporary / MANIFEST, manifest)
    return manifest


def _require_packages() -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"the export to ONNX needs {error.name}; install the extra: pip install '.[onnx]'"
        ) from error


def _export_item_encoder(model: "ItemsTower", path: Path) -> float:
    """Write the item encoder; return its largest difference from PyTorch."""
    import torch
    from torch import nn
    from torch.nn import functional

    class ItemEncoder(nn.Module):
        """Raw features (I, F) of each modality and item numbers (I,) to unit vectors (I, D) of both roles."""

        def __init__(self) -> None:
            super().__init__()
            self.tower = model

        def forward(self, features: dict[str, Any], numbers: Any) -> tuple[Any, Any]:
            tower = self.tower
            contents = {name: tower.whiten(name, values) for name, values in features.items()}
            roles = [tower.item_head(contents), tower.history_head(contents)]
            if (ids := tower.item_id_embedding) is not None:
                is_known = (numbers >= 0)[:, None]
                tables = (ids.candidate, ids.history)
                roles = [
                    functional.normalize(role + table(numbers.clamp(min=0)) * is_known, dim=-1)
                    for role, table in zip(roles, tables, strict=True)
                ]
            return roles[0], roles[1]

    random = torch.Generator().manual_seed(0)

    def inputs(count: int) -> "tuple[dict[str, torch.Tensor], torch.Tensor]":
        features = {name: torch.randn(count, dim, generator=random) for name, dim in model.config.raw_dims.items()}
        next(reversed(features.values()))[0] = 0  # an item without this modality
        return features, torch.arange(count) - 1  # the first one is new

    items = torch.export.Dim("items")
    names = [*model.config.raw_dims, "numbers"]
    shapes = ({name: {0: items} for name in model.config.raw_dims}, {0: items})
    return _export(ItemEncoder(), inputs, path, names, ["vector", "history_vector"], shapes)


def _export_user_encoder(model: "ItemsTower", path: Path, histories: Any) -> float:
    """Write the user encoder; return its largest difference from PyTorch."""
    import torch
    from torch import nn

    class UserEncoder(nn.Module):
        """History vectors (B, L, D), times (B, L) and lengths (B,) to unit vectors (B, D)."""

        def __init__(self) -> None:
            super().__init__()
            self.tower = model

        def forward(self, history_vectors: Any, times: Any, lengths: Any) -> Any:
            return self.tower.user_vectors(history_vectors, times, lengths)

    random = torch.Generator().manual_seed(0)
    known = torch.from_numpy(np.array(histories))

    def inputs(count: int) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
        longest = min(count + 2, model.config.max_history_len)
        rows = torch.randint(len(known), (count, longest), generator=random)
        times = torch.randint(0, 100 * DAY_MS, (count, longest), generator=random).cumsum(1)
        return known[rows], times, torch.arange(count) % longest + 1

    users, length = torch.export.Dim("users"), torch.export.Dim("length", max=model.config.max_history_len)
    shapes = ({0: users, 1: length}, {0: users, 1: length}, {0: users})
    return _export(UserEncoder(), inputs, path, ["history_vectors", "times", "lengths"], ["vector"], shapes)


def _export(
    module: Any, inputs: Callable[[int], Any], path: Path, names: list[str], outputs: list[str], shapes: Any
) -> float:
    """Export a module, run the graph on inputs of another size, and compare it with PyTorch.

    `inputs` returns the inputs of a number of rows, whose dynamic dimensions are `shapes`.

    Raises:
        ArtefactError: a number differs by more than `TOLERANCE`.
    """
    import onnxruntime
    import torch

    module = module.eval()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of packages that these graphs do not need
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, inputs(3), dynamo=True, input_names=names, output_names=outputs, dynamic_shapes=shapes,
            opset_version=OPSET, external_data=False, verbose=False,
        )  # fmt: skip
    assert program is not None
    program.save(path)
    given = inputs(CHECKED)
    with torch.inference_mode():
        expected = module(*given)
    flat = torch.utils._pytree.tree_leaves(given)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    used = {each.name for each in session.get_inputs()}
    feeds = {name: value.numpy() for name, value in zip(names, flat, strict=True) if name in used}
    found = session.run(None, feeds)
    wanted = [each.numpy() for each in (expected if isinstance(expected, tuple) else (expected,))]
    difference = max(float(np.abs(a - b).max()) for a, b in zip(found, wanted, strict=True))
    if not difference <= TOLERANCE:
        raise ArtefactError(
            f"{path.name} differs from PyTorch by {difference:.2g}, more than {TOLERANCE:g}; please report it with the "
            "versions of torch and onnxruntime"
        )
    return difference
