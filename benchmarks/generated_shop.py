"""The generated shop that benchmarks of the model measure on."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pixrec_core import pipeline
from pixrec_core.settings import Settings
from pixrec_core.stages import Stage, Work

VARIANT = "multimodal"
DATA_STAGES = (pipeline.RAW, pipeline.ITEMS, pipeline.INTERACTIONS, pipeline.IMAGES, pipeline.SEQUENCES)
INDEX_STAGES = (*DATA_STAGES, pipeline.CHECKPOINT, pipeline.ITEM_VECTORS, pipeline.ITEM_INDEX)


def open_shop(folder: Path, users: int, stages: Sequence[Stage], item_tokens: int = 16) -> Work:
    """A shop in a folder after some stages."""
    work = shop({"users": users}, folder, item_tokens)
    for stage in stages:
        stage.materialise(work)
    return work


def shop(options: Mapping[str, int], folder: Path, item_tokens: int = 16) -> Work:
    """A shop of the generator's `options`, nothing made yet; a training has one epoch, and there is one variant."""
    sample = {
        "source": {"kind": "sample", **options},
        "model": {"item_tokens": item_tokens},
        "training": {"epochs": 1},
    }
    settings = Settings(root=folder, data_dir=folder, datasets={"sample": sample}, variants=(VARIANT,))
    return Work(settings, "sample", VARIANT)
