"""A checkpoint folder: the dual tower as transformers saves it, its processor, and what is known of its training.

`AutoModel`, `AutoTokenizer` and `AutoImageProcessor` read it once `DualTower` is imported; nothing in it is code. What
the models need is imported with them: whoever asks only whether a checkpoint is current is not to wait for it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixrec_core import files
from pixrec_core.errors import CheckpointError
from pixrec_core.models.card import model_card
from pixrec_core.settings import ModelSettings, Section, TrainingSettings

if TYPE_CHECKING:
    from pixrec_core.models.backbones import Processor
    from pixrec_core.models.dual_tower import DualTower

WEIGHTS = "model.safetensors"
CURVES = "training.json"
SETTINGS = "settings.json"
CARD = "README.md"


def save(
    folder: Path, model: "DualTower", processor: "Processor", settings: Mapping[str, Any], record: dict[str, Any]
) -> None:
    """Write a checkpoint, atomically.

    Args:
        folder: to write.
        model: the tower.
        processor: of its backbone.
        settings: `variant`, `model` and `training` that it was trained with.
        record: of the training: `epochs`, `data` and what else its model card tells.
    """
    plain = {n: s.model_dump(mode="json") if isinstance(s, Section) else s for n, s in settings.items()}
    with files.replacing(folder) as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        record = record | {"weights_sha256": files.sha256_file(temporary / WEIGHTS)}
        files.write_json(temporary / CURVES, record)
        files.write_json(temporary / SETTINGS, plain)
        (temporary / CARD).write_text(model_card(plain, record), encoding="utf-8")


def initial_weights(settings: ModelSettings, start: Path | None) -> dict[str, Any]:
    """Where a model's first weights came from.

    Args:
        settings: whose revision is a commit (`hub.pin_revision`).
        start: folder of the checkpoint that was trained on, if there was one.

    Returns:
        `backbone`: its kind (embedded, folder or hub), its name, and its revision on the hub (a commit);
        `started_from`: datasets and weights of the checkpoint that was trained on, None without one.
    """
    if start is not None:
        record = files.read_json(start / CURVES)
        started = {"datasets": sorted(record["data"]), "weights_sha256": record["weights_sha256"]}
        return {"backbone": record["backbone"], "started_from": started}
    if settings.backbone == "tiny":
        backbone = {"kind": "embedded", "name": settings.backbone, "revision": None}
    elif Path(settings.backbone).is_dir():
        backbone = {"kind": "folder", "name": "a local folder", "revision": None}
    else:
        backbone = {"kind": "hub", "name": settings.backbone, "revision": settings.revision}
    return {"backbone": backbone, "started_from": None}


def weights_sha256(folder: Path) -> str:
    """What the checkpoint is: the checksum of its weights."""
    return str(files.read_json(folder / CURVES)["weights_sha256"])


def load(folder: Path) -> "tuple[DualTower, Processor]":
    """Read a checkpoint, ready for inference on the GPU if there is one.

    Raises:
        MissingArtefactError: no checkpoint there.
        CheckpointError: its weights are not those that were saved.
    """
    from pixrec_core.models.dual_tower import DualTower
    from pixrec_core.models.loading import load_processor

    if files.sha256_file(files.require(folder / WEIGHTS)) != weights_sha256(folder):
        raise CheckpointError(f"{folder / WEIGHTS} is damaged: its checksum is not the saved one; train again")
    model = DualTower.from_pretrained(folder).eval()
    return model.to(device()), load_processor(folder)


def load_settings(folder: Path) -> tuple[ModelSettings, TrainingSettings]:
    """The settings that a checkpoint was trained with."""
    saved = files.read_json(folder / SETTINGS)
    return ModelSettings.model_validate(saved["model"]), TrainingSettings.model_validate(saved["training"])


def device() -> str:
    """Where models run."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
