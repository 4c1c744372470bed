"""The generated shop that benchmarks of the model measure on."""

from collections.abc import Sequence
from pathlib import Path

from pixrec_core import pipeline
from pixrec_core.settings import Settings
from pixrec_core.stages import Stage, Work

DATA_STAGES = (pipeline.RAW, pipeline.ITEMS, pipeline.INTERACTIONS, pipeline.IMAGES, pipeline.SEQUENCES)
INDEX_STAGES = (*DATA_STAGES, pipeline.CHECKPOINT, pipeline.ITEM_VECTORS, pipeline.ITEM_INDEX)


def open_shop(folder: Path, users: int, stages: Sequence[Stage], item_tokens: int = 16) -> Work:
    """A shop in a folder after some stages; a training has one epoch."""
    sample = {
        "source": {"kind": "sample", "users": users},
        "model": {"item_tokens": item_tokens},
        "training": {"epochs": 1},
    }
    work = Work(Settings(root=folder, data_dir=folder, datasets={"sample": sample}), "sample", "multimodal")
    for stage in stages:
        stage.materialise(work)
    return work
