"""Training of dual towers on sequences and photos, of one dataset or of several jointly.

transformers' Trainer brings schedules, mixed precision and resuming. This package brings batches (`batches`), the loss
and checkpoints of the dual tower (`trainer`), sharded models (`sharding`) and validation by retrieval (`validation`).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
from transformers import set_seed

from pixrec_core import files, hub, prompts, schemas
from pixrec_core.data.contract import require_valid_sequences
from pixrec_core.data.sequences import read_items
from pixrec_core.engine import LOCAL, Engine, Launcher
from pixrec_core.evaluation.leaks import read_checked_sequences
from pixrec_core.models import checkpoint, tuning
from pixrec_core.models.dual_tower import DualTower, DualTowerConfig
from pixrec_core.models.item_inputs import NO_PHOTO
from pixrec_core.models.loading import create_backbone
from pixrec_core.models.photo_store import PhotoStore, current_features, feature_store
from pixrec_core.models.process_group import RankInfo
from pixrec_core.models.tower_inputs import TowerInputs
from pixrec_core.paths import VariantPaths
from pixrec_core.retrieval.token_encoder import Encoder
from pixrec_core.settings import ModelSettings, TrainingSettings
from pixrec_core.stages import Stats
from pixrec_core.training import items
from pixrec_core.training.batches import JointWindows
from pixrec_core.training.prepared import (
    COLLABORATIVE,
    Prepared,
    ProcessGroupEngine,
    count_data,
    read_negatives,
    read_photos,
    read_windows,
)
from pixrec_core.training.tracking import mlflow_run
from pixrec_core.training.trainer import DualTowerTrainer, Epoch, remove_unfinished
from pixrec_core.training.validation import MeanValidation, Validation

__all__ = ["build_tower", "mlflow_run", "train"]

INITIAL = ("backbone", "started_from")  # parts of a record about the initial weights, the same in a refit


def train(
    model_settings: ModelSettings,
    settings: TrainingSettings,
    paths: VariantPaths,
    datasets: Mapping[str, VariantPaths],
    *,
    run: str,
    start: Path | None = None,
    measured: Path | None = None,
    engine: Launcher = LOCAL,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
) -> Stats:
    """Train one variant and write the checkpoint of its best epoch by `settings.metric_for_best_model`.

    A refit names a measured checkpoint. It trains without validation, for the number of epochs up to the best one of
    that checkpoint. The new checkpoint has the record of the measured one, and the sizes of its data under `refit`.

    A killed training of the same run resumes after its last complete epoch, in any number of processes. Items and users
    belong to their dataset: the same id in two datasets means two items.

    Args:
        model_settings: backbone and embedding size.
        settings: objective and optimiser.
        paths: paths of the checkpoint.
        datasets: the variant in each training dataset, by name.
        run: identifies everything that the outcome depends on; the state of another run is never resumed.
        start: folder of a checkpoint to continue from; None starts from the backbone.
        measured: folder of the checkpoint to refit on sequences that hold all interactions; None trains and validates.
        engine: starts the training processes if there are several, and encodes photos for a frozen vision tower.
        on_epoch: called with the losses and validation metrics of each epoch.

    Returns:
        What the checkpoint records about its training, without the epochs.

    Raises:
        ContractError: the sequences break their data contract, or contain nothing to train on.
        BackboneError: the backbone cannot be loaded, or has no part that `model.tune` names.
        CheckpointError: the checkpoint in `start` is damaged.
        SettingsError: there are fewer GPUs than processes.
        EngineError: the engine has no room for the processes.
        LostProcessError: one of several processes died.
    """
    if measured is None:
        for dataset in datasets.values():
            require_valid_sequences(dataset.dataset)
            read_checked_sequences(dataset.dataset)
    model_settings, state = hub.pin_revision(model_settings), _state_folder(paths, run)
    given = model_settings, settings, paths, datasets, state, start, measured
    if settings.processes == 1:
        _run_training(*given, engine, on_report=on_epoch)
    else:
        if engine.workers > 1:  # before the training processes take the room of the workers
            _encode_photos(model_settings, settings, datasets, start, engine)
        engine.run_process_group(partial(_run_training, *given, LOCAL), settings.processes, on_epoch)
    files.remove(paths.training)
    record = files.read_json(paths.checkpoint / checkpoint.CURVES)
    return {name: value for name, value in record.items() if name != "epochs"}


def _encode_photos(
    model_settings: ModelSettings,
    settings: TrainingSettings,
    datasets: Mapping[str, VariantPaths],
    start: Path | None,
    engine: Engine,
) -> None:
    """Encode the photos for a frozen vision tower ahead of the training processes."""
    if model_settings.vision != "frozen":
        return
    set_seed(settings.seed)
    model, inputs = build_tower(model_settings, settings, list(datasets.values()), start)
    for dataset, tower_inputs in zip(datasets.values(), inputs, strict=True):
        if tower_inputs.pixels is not None:
            feature_store(dataset.dataset.cache, model, tower_inputs.pixels, engine)


def _run_training(
    model_settings: ModelSettings,
    settings: TrainingSettings,
    paths: VariantPaths,
    datasets: Mapping[str, VariantPaths],
    state: Path,
    start: Path | None,
    measured: Path | None,
    engine: Engine,
    *,
    on_report: Callable[[Epoch], None],
) -> None:
    """Run `train` in one process, alone or in a group whose first process writes the checkpoint."""
    set_seed(settings.seed)
    if model_settings.user_encoder == "items":
        prepared = items.prepare(model_settings, settings, datasets, engine)
    else:
        prepared = _prepare_tokens(model_settings, settings, datasets, start, engine)
    model, old = prepared.model, None if measured is None else files.read_json(measured / checkpoint.CURVES)
    trainer = DualTowerTrainer(
        model,
        prepared.windows,
        settings,
        state,
        paths.curves,
        validate=prepared.validate if old is None else None,
        on_epoch=on_report,
        name=paths.variant,
        last_epoch=0 if old is None else old["best_epoch"],
    )
    begin = time.monotonic()
    trainer.fit()
    if not trainer.is_world_process_zero():
        return
    if settings.fsdp:
        model, _ = build_tower(model_settings, settings, list(datasets.values()), start)
        trainer.load_best(model)
    record = {
        **trainer.curves(),
        "seconds": round(time.monotonic() - begin, 3),
        "processes": settings.processes,
        "examples": sum(windows.targets for windows in prepared.windows.windows),
        "data": prepared.counts,
        **checkpoint.initial_weights(model_settings, start),
    }
    if old is not None:
        record = old | {"refit": {name: value for name, value in record.items() if name not in INITIAL}}
    if model.backbone is not None:
        tuning.merge_lora_adapters(model)
    model.config.seen_offset = record.get("seen_offset", 0.0)
    settings_used = {"variant": paths.variant, "model": model_settings, "training": settings}
    checkpoint.save(paths.checkpoint, model, prepared.processor, settings_used, record)


def _prepare_tokens(
    model_settings: ModelSettings,
    settings: TrainingSettings,
    datasets: Mapping[str, VariantPaths],
    start: Path | None,
    engine: Engine,
) -> Prepared:
    """Return a tower that reads whole histories, and its data."""
    model, inputs = build_tower(model_settings, settings, list(datasets.values()), start)
    parts, validations, counts = [], {}, {}
    for (name, paths), tower_inputs in zip(datasets.items(), inputs, strict=True):
        photos = read_photos(tower_inputs.pixels, model, model_settings.vision, paths.dataset.cache, engine)
        windows = read_windows(name, paths, settings)
        collator = tower_inputs.collator(photos, read_negatives(paths, settings), RankInfo.current())
        validation = Validation(
            paths.dataset, partial(_encoder, tower_inputs, photos), settings.max_history_len, ProcessGroupEngine()
        )
        parts.append((windows, collator))
        validations[name] = validation
        with_photo = int((tower_inputs.inputs.photo_rows != NO_PHOTO).sum())
        counts[name] = count_data(windows, len(tower_inputs.items), with_photo, validation.users)
    validate = MeanValidation(validations) if len(validations) > 1 else next(iter(validations.values()))
    return Prepared(model, JointWindows(parts), validate, counts, inputs[0].processor)


def _encoder(inputs: TowerInputs, photos: PhotoStore | None, model: DualTower) -> Encoder:
    """Return the encoder of a model in training; `photos` are pixels or features."""
    return Encoder(model, inputs, current_features(model, photos, ProcessGroupEngine()) if photos else None)


def build_tower(
    model_settings: ModelSettings,
    settings: TrainingSettings,
    datasets: Sequence[VariantPaths],
    start: Path | None = None,
) -> tuple[DualTower, list[TowerInputs]]:
    """Return a tower with its trainable parts unfrozen, and the tower inputs of each dataset.

    The tower starts from a checkpoint or from the backbone that the settings name. Only a training on one dataset can
    have item-id embeddings.

    Raises:
        BackboneError: the backbone cannot be loaded, or has no part that `model.tune` names.
        CheckpointError: the checkpoint in `start` is damaged.
    """
    objective: dict[str, Any] = {
        "tau": settings.temperature,
        "weight_item_item": settings.weight_item_item,
        "weight_user_item": settings.weight_user_item,
    }
    if start:
        model, processor = checkpoint.load(start)
        model.config.update(objective)
    else:
        backbone, processor = create_backbone(
            model_settings.backbone, model_settings.revision, lambda: _training_texts(datasets)
        )
        config = DualTowerConfig(
            backbone_config=backbone.config, embedding_dim=model_settings.embedding_dim, **objective
        )
        model = DualTower(config, backbone)
    inputs = [TowerInputs.load(each, model.backbone, processor, model_settings.item_tokens) for each in datasets]
    if len(datasets) == 1 and datasets[0].variant == COLLABORATIVE:
        model.add_item_id_embedding(pl.Series(inputs[0].items), model_settings.item_id_dropout)
    tuning.select_trainable_weights(model, model_settings)
    return model.to(checkpoint.device()), inputs


def _training_texts(datasets: Sequence[VariantPaths]) -> Iterator[str]:
    """Yield the texts of items that occur in training: a tokenizer must not learn from held-out items."""
    for dataset in datasets:
        sold = read_items(dataset.dataset).filter(pl.col(schemas.TRAIN_COUNT) > 0)
        yield from (prompts.item_text(item) for item in sold.iter_rows(named=True))


def _state_folder(paths: VariantPaths, run: str) -> Path:
    """Return the folder of the state of this run; remove states and curves of other runs, and incomplete states."""
    state = paths.training / run[:16]
    if not state.exists():
        files.remove(paths.training)
        files.remove(paths.curves)
    state.mkdir(parents=True, exist_ok=True)
    remove_unfinished(state)
    return state
