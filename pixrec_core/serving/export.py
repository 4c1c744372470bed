"""Export of a promoted tower: item vectors for a vector database, or both encoders as ONNX.

The graphs are checked against PyTorch before the folder appears. They run in onnxruntime, without PixRec and PyTorch.
"""

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl
from pyarrow import parquet

from pixrec_core import files, hub
from pixrec_core.data.sequences import read_items
from pixrec_core.errors import ArtefactError, QueryError, SettingsError
from pixrec_core.models.checkpoint import read_seen_offset
from pixrec_core.paths import DatasetPaths, PromotedPaths
from pixrec_core.printable import shown_url
from pixrec_core.retrieval.encode import ItemsEncoder, Vectors, load_encoder, read_item_vectors
from pixrec_core.schemas import DAY_MS, HAS_IMAGE, IMAGE_URL, ITEM, TITLE
from pixrec_core.serving.promotion import Promotion, parts_of_method, read_promotion, verify_promotion
from pixrec_core.stages import Stats

if TYPE_CHECKING:
    import torch

    from pixrec_core.models.items_layers import ItemsLayers

EXPORTED: Final = "items.parquet"
MANIFEST: Final = "export.json"
PHOTO: Final = "photo"  # path of the stored file within the dataset's folder; null without one
VECTOR: Final = "vector"
ITEM_ENCODER: Final = "item_encoder.onnx"
USER_ENCODER: Final = "user_encoder.onnx"
TOLERANCE: Final = 1e-4  # of unit vectors, per number
OPSET: Final = 18
CHECKED: Final = 7  # items and users of the check; not the number of the trace
ROWS_PER_BATCH: Final = 65_536  # 33 MB of vectors with 128 dimensions


def export_items(folder: PromotedPaths, output: Path, method: str | None = None, *, whole_urls: bool = False) -> Stats:
    """Write all items with their vectors, and a manifest. The folder appears complete or not at all.

    Args:
        folder: the promoted folder.
        output: folder to write; replaces an earlier export.
        method: a dual tower; by default the best one on validation.
        whole_urls: write photo URLs with password and query, which may be secret.

    Returns:
        The manifest: the origin of the vectors and the metric that compares them.

    Raises:
        MissingArtefactError: nothing has been promoted.
        ArtefactError: a promoted file is damaged.
        QueryError: the method has not been promoted, or is no dual tower.
        SettingsError: `output` exists and is no earlier export.
    """
    check_output(output, {EXPORTED, MANIFEST})
    promotion = read_promotion(folder)
    tower = choose_tower(promotion, method)
    copies = verify_promotion(folder, promotion, ["sequences.duckdb", *parts_of_method(promotion, tower)])
    items, vectors = read_item_vectors(copies.variant(tower).item_vectors)
    catalogue = read_items(copies)
    assert catalogue[ITEM].to_list() == items, "the vectors and the catalogue of a promotion differ"
    if not whole_urls:
        urls = (url and shown_image(url) for url in catalogue[IMAGE_URL])
        catalogue = catalogue.with_columns(pl.Series(IMAGE_URL, urls, pl.String))
    with files.replacing(output) as temporary:
        temporary.mkdir()
        _write_frames(temporary / EXPORTED, _frames(catalogue, vectors))
        manifest = {
            **_origin(promotion, tower),
            "items": len(items),
            "items_sha256": files.sha256_file(temporary / EXPORTED),
            "dimension": vectors.shape[1],
            "metric": "inner_product",
            "unit_vectors": True,
            "seen_offset": read_seen_offset(copies.variant(tower).checkpoint),
        }
        files.write_json(temporary / MANIFEST, manifest)
    return manifest


def shown_image(image: str) -> str:
    """Return a URL without its secrets, or the path of a local photo, in which `@`, `#` and `?` have no meaning."""
    return shown_url(image) if "://" in image else image


def push_checkpoint(folder: PromotedPaths, repository: str, method: str | None = None, *, private: bool = True) -> str:
    """Upload a promoted checkpoint with its model card to the Hugging Face hub; return the URL of the repository.

    Args:
        folder: the promoted folder.
        repository: `owner/name`; created if it does not exist.
        method: a dual tower; by default the best one on validation.
        private: whether a new repository is private.

    Raises:
        MissingArtefactError: nothing has been promoted.
        ArtefactError: a promoted file is damaged.
        QueryError: the method has not been promoted, or is no dual tower.
        SettingsError: the hub refuses the upload or cannot be reached.
    """
    promotion = read_promotion(folder)
    tower = choose_tower(promotion, method)
    copies = verify_promotion(folder, promotion, parts_of_method(promotion, tower))
    message = f"{tower} of {promotion.dataset}, promotion {promotion.number} of {promotion.promoted_at}"
    return hub.push_folder(copies.variant(tower).checkpoint, repository, message, private=private)


def choose_tower(promotion: Promotion, method: str | None) -> str:
    """Return the dual tower to export; by default the best one on validation.

    Raises:
        QueryError: the method has not been promoted, or is no dual tower.
    """
    if not promotion.towers:
        raise QueryError(f"no promoted method of {promotion.dataset} has item vectors")
    if method and promotion.require_method(method) not in promotion.towers:
        raise QueryError(f"method {method} has no item vectors; name one of {', '.join(promotion.towers)}")
    return method or promotion.towers[0]


def _origin(promotion: Promotion, tower: str) -> dict[str, str]:
    """Return what a manifest says of the tower."""
    return {
        "dataset": promotion.dataset,
        "method": tower,
        "promoted_at": promotion.promoted_at,
        "checkpoint_sha256": promotion.checkpoint_sha256[tower],
        "exported_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def check_output(output: Path, names: set[str]) -> None:
    """Refuse a folder with other files than those of an export, since an export replaces the whole folder.

    Raises:
        SettingsError: there are such files, or `output` is a file.
    """
    if output.exists() and not (output.is_dir() and {each.name for each in output.iterdir()} <= names):
        raise SettingsError(f"{output} exists and is no earlier export; name a folder that does not exist yet")


def _frames(catalogue: pl.DataFrame, vectors: Vectors) -> Iterator[pl.DataFrame]:
    """Rows of the export, `ROWS_PER_BATCH` at a time."""
    relative = DatasetPaths(Path())
    for start in range(0, len(vectors), ROWS_PER_BATCH):
        batch = catalogue[start : start + ROWS_PER_BATCH]
        photos = [
            relative.image(item).as_posix() if has_image else None
            for item, has_image in batch.select(ITEM, HAS_IMAGE).iter_rows()
        ]
        yield batch.select(
            ITEM,
            TITLE,
            IMAGE_URL,
            pl.Series(PHOTO, photos, pl.String),
            pl.Series(VECTOR, vectors[start : start + ROWS_PER_BATCH]),
        )


def _write_frames(path: Path, frames: Iterator[pl.DataFrame]) -> None:
    """Write frames to one Parquet file, with vectors as fixed-size lists."""
    tables = (frame.to_arrow(compat_level=pl.CompatLevel.oldest()) for frame in frames)
    first = next(tables)
    with parquet.ParquetWriter(path, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)


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
    check_output(output, {ITEM_ENCODER, USER_ENCODER, EXPORTED, MANIFEST})
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
        pl.DataFrame(columns).write_parquet(temporary / EXPORTED)
        manifest = {
            **_origin(promotion, name),
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


def _export_item_encoder(model: "ItemsLayers", path: Path) -> float:
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


def _export_user_encoder(model: "ItemsLayers", path: Path, histories: Any) -> float:
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
