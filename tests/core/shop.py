"""A small generated shop after the data stages, for tests of later stages."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import set_seed

from pixrec_core import files, pipeline, recommenders, training
from pixrec_core.models import checkpoint
from pixrec_core.recommenders import blend
from pixrec_core.serving import gate
from pixrec_core.settings import Settings
from pixrec_core.stages import Stats, Work
from pixrec_core.training import items

AFTER_TRAINING = (pipeline.ITEM_VECTORS, pipeline.ITEM_INDEX, pipeline.RANKING)


def settings(data_dir: Path, **sections: dict) -> Settings:
    """Return settings of one dataset `shop`, with a model of tokens that trains in seconds.

    58 users are too few to choose the method that serves: it is the first variant.
    """
    model = {"user_encoder": "tokens", "embedding_dim": 16, "item_tokens": 8} | sections.get("model", {})
    training = {"epochs": 2, "batch_size": 16, "max_history_len": 4} | sections.get("training", {})
    source = {"kind": "sample", "users": 58, "items": 40} | sections.get("source", {})
    shop = {"source": source, "model": model, "training": training}
    shop |= {name: sections.get(name, {}) for name in ("sequences", "generative")}
    datasets, engine = {"shop": shop}, sections.get("engine", {})
    return Settings(root=data_dir, data_dir=data_dir / "data", datasets=datasets, engine=engine)


def open_shop(data_dir: Path, variant: str = "multimodal", **sections: dict) -> Work:
    """Run the data stages that are not current, and return the work of one variant."""
    work = Work(settings(data_dir, **sections), "shop", variant)
    for stage in pipeline.DATA:
        if not stage.is_current(work):
            stage.materialise(work)
    return work


def served_shop(data_dir: Path, *variants: str, baselines: Sequence[str] = ("popularity",), **sections: dict) -> Work:
    """Build a shop with promoted methods: a few baselines, checkpoints of random weights, and a blend if users suffice.

    Returns:
        Work on the first variant.
    """
    for variant in variants:
        work = open_shop(data_dir, variant, **sections)
        for stage in (replace(pipeline.CHECKPOINT, run=untrained, resumes=False), *AFTER_TRAINING):
            stage.materialise(work)
    work = open_shop(data_dir, variants[0], **sections)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recommenders, "baseline_names", lambda: list(baselines))
        pipeline.BASELINES.run(work)
    blend.build_blend(work.dataset_settings.blend, work.dataset_settings.retrieval, work.paths, variants)
    gate.promote_unless_worse("shop", work.dataset_settings, work.paths, variants)
    return work


def untrained(work: Work, seed: int = 0) -> Stats:
    """Write a checkpoint of random weights, item id embeddings included, without a model card."""
    set_seed(seed)
    own, paths = work.dataset_settings, work.variant_paths
    if own.model.user_encoder == "items":
        model, _, processor = items.build_items_tower(own.model, own.training, paths)
    else:
        model, (inputs,) = training.build_tower(own.model, own.training, [paths])
        processor = inputs.processor
    if model.item_id_embedding:
        for table in (model.item_id_embedding.history, model.item_id_embedding.candidate):
            torch.nn.init.normal_(table.weight)
    model.config.seen_offset = -0.1
    used = {"model": own.model.model_dump(mode="json"), "training": own.training.model_dump(mode="json")}
    with files.replacing(paths.checkpoint) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        files.write_json(folder / checkpoint.SETTINGS, used)
        weights = files.sha256_file(folder / checkpoint.WEIGHTS)
        files.write_json(folder / checkpoint.CURVES, {"weights_sha256": weights})
    return {}
