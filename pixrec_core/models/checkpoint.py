"""A checkpoint folder: the dual tower as transformers saves it, its processor, settings and training curves."""

from pathlib import Path
from typing import Any

from pixrec_core import files
from pixrec_core.errors import CheckpointError
from pixrec_core.models.backbones import Processor
from pixrec_core.models.dual_tower import DualTower
from pixrec_core.models.loading import load_processor
from pixrec_core.settings import ModelSettings, TrainingSettings

WEIGHTS = "model.safetensors"
CURVES = "training.json"
SETTINGS = "settings.json"


def save(
    folder: Path,
    model: DualTower,
    processor: Processor,
    settings: tuple[ModelSettings, TrainingSettings],
    curves: dict[str, Any],
) -> None:
    """Write a checkpoint, atomically."""
    with files.replacing(folder) as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        curves = curves | {"weights_sha256": files.sha256_file(temporary / WEIGHTS)}
        files.write_json(temporary / CURVES, curves)
        names = ("model", "training")
        files.write_json(
            temporary / SETTINGS, {n: s.model_dump(mode="json") for n, s in zip(names, settings, strict=True)}
        )


def digest(folder: Path) -> str:
    """What the checkpoint is: the checksum of its weights."""
    return str(files.read_json(folder / CURVES)["weights_sha256"])


def load(folder: Path) -> tuple[DualTower, Processor]:
    """Read a checkpoint, ready for inference on the GPU if there is one.

    Raises:
        MissingArtefactError: no checkpoint there.
        CheckpointError: its weights are not those that were saved.
    """
    if files.sha256_file(files.require(folder / WEIGHTS)) != digest(folder):
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
