"""A checkpoint folder: the dual tower and its processor as transformers saves them, settings and training record.

`AutoModel`, `AutoTokenizer` and `AutoImageProcessor` load it after an import of `DualTower`; it contains no code.
torch and transformers are imported in functions: `pixrec status` does not need them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixrec_core import files
from pixrec_core.errors import CheckpointError, PixRecError
from pixrec_core.models.card import model_card
from pixrec_core.settings import ModelSettings, Section, TrainingSettings

if TYPE_CHECKING:
    from pixrec_core.models.backbones import Processor
    from pixrec_core.models.dual_tower import DualTower
    from pixrec_core.models.frozen_features import FrozenEncoders
    from pixrec_core.models.items_tower import ItemsTower

WEIGHTS = "model.safetensors"
CURVES = "training.json"
SETTINGS = "settings.json"
CARD = "README.md"
REMEDY = "Restore it, or train again"


def save(
    folder: Path,
    model: "DualTower | ItemsTower",
    processor: "Processor | FrozenEncoders",
    settings: Mapping[str, Any],
    record: dict[str, Any],
) -> None:
    """Write a checkpoint atomically.

    `settings` has `variant`, `model` and `training`; `record` is the training record, as for `model_card`.
    """
    plain = {n: s.model_dump(mode="json") if isinstance(s, Section) else s for n, s in settings.items()}
    with files.replacing(folder) as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        record = record | {"weights_sha256": files.sha256_file(temporary / WEIGHTS)}
        files.write_json(temporary / CURVES, record)
        files.write_json(temporary / SETTINGS, plain)
        (temporary / CARD).write_text(model_card(plain, record), encoding="utf-8")


def replace_weights(folder: Path, model: "DualTower | ItemsTower") -> None:
    """Write other weights into the folder of a checkpoint, and their checksum; not atomically."""
    model.save_pretrained(folder)
    record = files.read_json(folder / CURVES) | {"weights_sha256": files.sha256_file(folder / WEIGHTS)}
    files.write_json(folder / CURVES, record)


def initial_weights(settings: ModelSettings, start: Path | None) -> dict[str, Any]:
    """The part of a training record about the initial weights.

    Args:
        settings: with a commit as revision (`hub.pin_revision`).
        start: folder of the checkpoint that training starts from; None to start from the backbone.

    Returns:
        `backbone`: its kind (embedded, folder, hub, or frozen for frozen encoders of text and photo), name, and
        revision on the hub (a commit);
        `started_from`: datasets and `weights_sha256` of the checkpoint `start`, or None.
    """
    if start is not None:
        record = files.read_json(start / CURVES)
        started = {"datasets": sorted(record["data"]), "weights_sha256": record["weights_sha256"]}
        return {"backbone": record["backbone"], "started_from": started}
    if settings.user_encoder == "items" and settings.item_encoder == "frozen":
        names = f"{Path(settings.text_encoder).name} and {Path(settings.photo_encoder).name}"
        backbone = {"kind": "frozen", "name": names, "revision": None}
    elif settings.backbone == "tiny":
        backbone = {"kind": "embedded", "name": settings.backbone, "revision": None}
    elif Path(settings.backbone).is_dir():
        backbone = {"kind": "folder", "name": "a local folder", "revision": None}
    else:
        backbone = {"kind": "hub", "name": settings.backbone, "revision": settings.revision}
    return {"backbone": backbone, "started_from": None}


def read_seen_offset(folder: Path) -> float:
    """Return `TowerConfig.seen_offset` of a checkpoint."""
    return float(files.read_json(folder / "config.json")["seen_offset"])


def weights_sha256(folder: Path) -> str:
    """Checksum of the weights, which identifies a checkpoint."""
    try:
        return str(files.read_json(folder / CURVES)["weights_sha256"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / CURVES} holds no checksum of the weights. {REMEDY}") from error


def load(folder: Path) -> "tuple[Any, Any]":
    """The model of a checkpoint, in evaluation mode, on the GPU if there is one; and what its inputs are made with.

    Returns:
        A `DualTower` and the `Processor` of its backbone, or an `ItemsTower` and its `FrozenEncoders` or the
        `Processor`.

    Raises:
        MissingArtefactError: there is no checkpoint.
        CheckpointError: the weights do not have the recorded checksum, or a file is damaged or unsafe.
    """
    from transformers import AutoConfig

    from pixrec_core.models.dual_tower import DualTower
    from pixrec_core.models.frozen_features import FrozenEncoders
    from pixrec_core.models.items_tower import ItemsTower, ItemsTowerConfig
    from pixrec_core.models.loading import load_processor

    with _reporting_damage(folder):
        items = isinstance(AutoConfig.from_pretrained(folder), ItemsTowerConfig)
        model = (ItemsTower if items else DualTower).from_pretrained(folder).eval()
        frozen = items and model.backbone is None
        processor = FrozenEncoders.in_folder(folder, model.whitening) if frozen else load_processor(folder)
    return model.to(device()), processor


def load_for_inference(folder: Path) -> "tuple[Any, Any]":
    """As `load`, but a `FrozenItemsTower` in place of an `ItemsTower` over frozen features.

    It loads without transformers, which takes two seconds to import.

    Raises:
        MissingArtefactError: see `load`.
        CheckpointError: see `load`.
    """
    settings, _ = load_settings(folder)
    if settings.user_encoder != "items" or settings.item_encoder != "frozen":
        return load(folder)
    from pixrec_core.models.frozen_features import FrozenEncoders
    from pixrec_core.models.items_layers import FrozenItemsTower

    with _reporting_damage(folder):
        model: FrozenItemsTower = FrozenItemsTower.from_pretrained(folder).eval()
    return model.to(device()), FrozenEncoders.in_folder(folder, model.whitening)


@contextmanager
def _reporting_damage(folder: Path) -> Iterator[None]:
    """Check the checksum of the weights, then report any error of the block as a `CheckpointError`."""
    if files.sha256_file(files.require(folder / WEIGHTS)) != weights_sha256(folder):
        raise CheckpointError(f"{folder / WEIGHTS} is damaged: its checksum differs from the one in {CURVES}. {REMEDY}")
    try:
        yield
    except PixRecError:
        raise
    except Exception as error:  # transformers raises anything for damaged files
        raise CheckpointError(f"{folder} cannot be loaded ({type(error).__name__}: {error}). {REMEDY}") from error


def load_settings(folder: Path) -> tuple[ModelSettings, TrainingSettings]:
    """The settings with which a checkpoint was trained.

    Raises:
        MissingArtefactError: there is no checkpoint.
        CheckpointError: the settings are damaged.
    """
    saved = files.read_json(folder / SETTINGS)
    try:
        return ModelSettings.model_validate(saved["model"]), TrainingSettings.model_validate(saved["training"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / SETTINGS} is damaged ({error}). {REMEDY}") from error


def device() -> str:
    """Device for inference and training of one process: `cuda` if available, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
