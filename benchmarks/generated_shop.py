"""The generated shop for benchmarks of the model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pixrec_core import pipeline
from pixrec_core.settings import Settings
from pixrec_core.stages import Stage, Work

VARIANT = "multimodal"
INDEX_STAGES = (*pipeline.DATA, pipeline.CHECKPOINT, pipeline.ITEM_VECTORS, pipeline.ITEM_INDEX)


def open_shop(folder: Path, users: int, stages: Sequence[Stage], **settings: Mapping[str, Any]) -> Work:
    """Generate a shop and run some stages."""
    work = shop({"users": users}, folder, **settings)
    for stage in stages:
        stage.materialise(work)
    return work


def shop(options: Mapping[str, int], folder: Path, **settings: Mapping[str, Any]) -> Work:
    """Return the settings of a generated shop with one variant; no stage has run.

    Args:
        options: options of the source `sample`.
        folder: folder of all files.
        settings: sections `model` and `training`; by default a model of tokens, and one epoch.
    """
    sample = {
        "source": {"kind": "sample", **options},
        "model": {"user_encoder": "tokens", "item_tokens": 16, **settings.get("model", {})},
        "training": {"epochs": 1, **settings.get("training", {})},
    }
    given = Settings(root=folder, data_dir=folder, datasets={"sample": sample}, variants=(VARIANT,))
    return Work(given, "sample", VARIANT)
