"""Sequences and photos to a trained dual tower, on transformers' Trainer.

The Trainer brings schedules, mixed precision and resume; ours is what it trains on and how it is judged
(`validation`).
"""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
from transformers import set_seed

from pixrec_core import files, prompts, schemas
from pixrec_core.data.contract import require_valid
from pixrec_core.data.sequences import read_items, read_sequences
from pixrec_core.errors import ContractError
from pixrec_core.models import checkpoint
from pixrec_core.models.dual_tower import DualTower, DualTowerConfig
from pixrec_core.models.loading import create_backbone
from pixrec_core.models.photo_store import PhotoStore, feature_store
from pixrec_core.models.tower_inputs import TowerInputs
from pixrec_core.models.windows import Windows
from pixrec_core.paths import VariantPaths
from pixrec_core.settings import ModelSettings, TrainingSettings
from pixrec_core.stages import Stats
from pixrec_core.training.trainer import DualTowerTrainer, Epoch, last_finished
from pixrec_core.training.validation import Validation

__all__ = ["build", "train"]


def train(
    model_settings: ModelSettings,
    settings: TrainingSettings,
    paths: VariantPaths,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
) -> Stats:
    """Train one variant and write its checkpoint: the epoch with the best validation NDCG@10.

    A run that was killed goes on from its last whole epoch, if data and settings are the same.

    Args:
        model_settings: backbone and size of the vectors.
        settings: objective and optimiser.
        paths: of the variant.
        on_epoch: told of each epoch's losses and validation metrics as it ends.

    Raises:
        ContractError: the sequences broke their data contract, or hold nothing to train on.
        BackboneError: the backbone cannot be loaded.
    """
    require_valid(paths.dataset)
    set_seed(settings.seed)
    model, inputs = build(model_settings, settings, paths)
    photos = _freeze_vision(model, inputs, paths) if model_settings.vision == "frozen" else None
    sequences = read_sequences(paths.dataset, schemas.TRAIN)[schemas.ITEMS].to_list()
    windows = Windows(inputs.numbers(sequences), settings.window, settings.seed)
    if not len(windows):
        raise ContractError(
            "no user has two interactions to train on; raise sequences.min_user_interactions to 4 or more "
            "(to 2 or more under the time split), or let its cuts come later"
        )
    state = _state_folder(model_settings, settings, paths)
    trainer = DualTowerTrainer(
        model,
        windows,
        inputs.collator(photos),
        settings,
        state,
        validate=Validation(paths.dataset, inputs, photos, settings.window),
        on_epoch=on_epoch,
        name=paths.variant,
    )
    start = time.monotonic()
    trainer.train(resume_from_checkpoint=last_finished(state))
    curves = {**trainer.curves(), "seconds": round(time.monotonic() - start, 3), "examples": windows.targets}
    checkpoint.save(paths.checkpoint, model, inputs.processor, (model_settings, settings), curves)
    files.remove(paths.training)
    return {name: value for name, value in curves.items() if name != "epochs"}


def build(
    model_settings: ModelSettings, settings: TrainingSettings, paths: VariantPaths
) -> tuple[DualTower, TowerInputs]:
    """An untrained tower on the backbone that the settings name, and what it reads.

    Raises:
        BackboneError: the backbone cannot be loaded.
    """
    backbone, processor = create_backbone(
        model_settings.backbone, model_settings.revision, lambda: _training_texts(paths)
    )
    inputs = TowerInputs.load(paths, backbone, processor, model_settings.item_tokens)
    config = DualTowerConfig(
        backbone_config=backbone.config,
        dimension=model_settings.dimension,
        tau=settings.temperature,
        weight_item_item=settings.weight_item_item,
        weight_user_item=settings.weight_user_item,
    )
    return DualTower(config, backbone).to(checkpoint.device()), inputs


def _training_texts(paths: VariantPaths) -> list[str]:
    """Texts of the items that occur in training: a tokenizer must not learn from what comes later."""
    items = read_items(paths.dataset).filter(pl.col(schemas.TRAIN_COUNT) > 0)
    return [prompts.item_text(item) for item in items.iter_rows(named=True)]


def _freeze_vision(model: DualTower, inputs: TowerInputs, paths: VariantPaths) -> PhotoStore | None:
    """Stop everything that an image passes before the language model from learning; encode each photo once."""
    for parameter in model.vision_parameters():
        parameter.requires_grad_(False)
    return feature_store(paths.dataset.cache, model, inputs.pixels) if inputs.pixels else None


def _state_folder(model_settings: ModelSettings, settings: TrainingSettings, paths: VariantPaths) -> Path:
    """Where this very training keeps its state; state of other settings or data is removed."""
    parts: list[Any] = [model_settings.model_dump(mode="json"), settings.model_dump(mode="json")]
    parts.append(files.sha256_file(paths.dataset.sequences))
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    paths.training.mkdir(parents=True, exist_ok=True)
    for other in paths.training.iterdir():
        if other.name != key:
            files.remove(other)
    return paths.training / key
