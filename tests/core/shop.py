"""A small sample shop, run through the data stages, for tests of what comes after them."""

from pathlib import Path

from pixrec_core import pipeline
from pixrec_core.settings import Settings
from pixrec_core.stages import Work

DATA_STAGES = (pipeline.RAW, pipeline.ITEMS, pipeline.INTERACTIONS, pipeline.IMAGES, pipeline.SEQUENCES)


def settings(data_dir: Path, **sections: dict) -> Settings:
    """Settings of one dataset `shop`, with a model that trains in seconds."""
    model = {"dimension": 16, "item_tokens": 8} | sections.get("model", {})
    training = {"epochs": 2, "batch_users": 16, "window": 4} | sections.get("training", {})
    shop = {"source": {"kind": "sample", "users": 60, "items": 40}, "model": model, "training": training}
    shop |= {name: sections.get(name, {}) for name in ("sequences", "generative")}
    return Settings(root=data_dir, data_dir=data_dir / "data", datasets={"shop": shop})


def open_shop(data_dir: Path, variant: str = "multimodal", **sections: dict) -> Work:
    """The shop as a training run finds it, and the place of work of one variant."""
    work = Work(settings(data_dir, **sections), "shop", variant)
    for stage in DATA_STAGES:
        if not stage.is_current(work):
            stage.materialise(work)
    return work
