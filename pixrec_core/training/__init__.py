"""Sequences and photos to a trained dual tower, on transformers' Trainer: of one dataset, or of several jointly.

The Trainer brings schedules, mixed precision and resume; ours is what it trains on (`mixture`) and how it is
judged (`validation`).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from transformers import set_seed

from pixrec_core import files, prompts, schemas
from pixrec_core.data.contract import require_valid
from pixrec_core.data.sequences import read_items, read_sequences
from pixrec_core.engine import LOCAL, Engine
from pixrec_core.engine.ray import RayEngine
from pixrec_core.errors import ContractError
from pixrec_core.evaluation.leaks import read_checked_sequences
from pixrec_core.models import checkpoint, hub, tuning
from pixrec_core.models.collate import Collator
from pixrec_core.models.dual_tower import DualTower, DualTowerConfig
from pixrec_core.models.item_inputs import NO_PHOTO
from pixrec_core.models.loading import create_backbone
from pixrec_core.models.negatives import Negatives
from pixrec_core.models.photo_store import feature_store, pixel_store
from pixrec_core.models.process_group import RankInfo
from pixrec_core.models.tower_inputs import TowerInputs
from pixrec_core.models.windows import TrainingWindows
from pixrec_core.paths import VariantPaths
from pixrec_core.settings import ModelSettings, TrainingSettings
from pixrec_core.stages import Stats
from pixrec_core.training import processes
from pixrec_core.training.batches import JointWindows
from pixrec_core.training.group_engine import GroupEngine
from pixrec_core.training.tracking import tracked
from pixrec_core.training.trainer import DualTowerTrainer, Epoch, remove_unfinished
from pixrec_core.training.validation import MeanValidation, Validation

__all__ = ["build", "tracked", "train"]

COLLABORATIVE = "collaborative"  # the variant with a learned vector an item


def train(
    model_settings: ModelSettings,
    settings: TrainingSettings,
    paths: VariantPaths,
    datasets: Mapping[str, VariantPaths],
    *,
    run: str,
    start: Path | None = None,
    engine: Engine = LOCAL,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
) -> Stats:
    """Train one variant and write its checkpoint: the epoch with the best validation metric `settings.metric_for_best_model`.

    A run that was killed goes on from its last whole epoch, if it is still the same run, in however many processes.
    Items and users are those of their dataset alone: the same id in two datasets is two items.

    Args:
        model_settings: backbone and size of the vectors.
        settings: objective and optimiser.
        paths: where the checkpoint goes.
        datasets: the variant in each dataset that is trained on, by name.
        run: names all that the outcome depends on: the state of another run is never resumed.
        start: folder of a checkpoint to train on from; none is the backbone itself.
        engine: what encodes the photos for a frozen vision tower, once; where it is Ray, several processes are its
            workers.
        on_epoch: told of each epoch's losses and validation metrics as it ends.

    Raises:
        ContractError: the sequences broke their data contract, or hold nothing to train on.
        BackboneError: the backbone cannot be loaded, or lacks what is to be tuned.
        CheckpointError: the checkpoint to start from is damaged.
        SettingsError: there are fewer GPUs than processes.
        EngineError: Ray has no room for the processes.
        LostProcessError: one of several processes died.
    """
    for each in datasets.values():
        require_valid(each.dataset)
        read_checked_sequences(each.dataset)
    model_settings, state = hub.pin_revision(model_settings), _state_folder(paths, run)
    given = model_settings, settings, paths, datasets, state, start
    if settings.processes == 1:
        _fit(*given, engine, on_epoch=on_epoch)
    elif isinstance(engine, RayEngine):
        _encode_photos(model_settings, settings, datasets, start, engine)
        engine.connect()
        engine.make_room()
        from pixrec_core.training import ray_processes  # only now: it imports Ray

        ray_processes.run(_fit, (*given, LOCAL), settings.processes, on_epoch, engine.settings)
    else:
        processes.run(_fit, (*given, LOCAL), settings.processes, on_epoch)
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
    """Make the features for a frozen vision tower, so that processes which take all the room find them made."""
    if model_settings.vision != "frozen":
        return
    set_seed(settings.seed)
    model, inputs = build(model_settings, settings, list(datasets.values()), start)
    for each, own in zip(datasets.values(), inputs, strict=True):
        if own.pixels is not None:
            feature_store(each.dataset.cache, model, own.pixels, engine)


def _fit(
    model_settings: ModelSettings,
    settings: TrainingSettings,
    paths: VariantPaths,
    datasets: Mapping[str, VariantPaths],
    state: Path,
    start: Path | None,
    engine: Engine,
    *,
    on_epoch: Callable[[Epoch], None],
) -> None:
    """`train` in one process: all of it, or what one of a group has to do. The first of them writes the checkpoint."""
    set_seed(settings.seed)
    model, inputs = build(model_settings, settings, list(datasets.values()), start)
    frozen = model if model_settings.vision == "frozen" else None
    parts = {
        name: _part(name, each, frozen, own, settings, engine)
        for (name, each), own in zip(datasets.items(), inputs, strict=True)
    }
    judges = {name: part.judge for name, part in parts.items()}
    trainer = DualTowerTrainer(
        model,
        JointWindows([(part.windows, part.collator) for part in parts.values()]),
        settings,
        state,
        paths.curves,
        validate=MeanValidation(judges) if len(judges) > 1 else next(iter(judges.values())),
        on_epoch=on_epoch,
        name=paths.variant,
    )
    begin = time.monotonic()
    trainer.fit()
    if not trainer.is_world_process_zero():
        return
    if settings.fsdp:
        model, _ = build(model_settings, settings, list(datasets.values()), start)
        trainer.load_best(model)
    record = {
        **trainer.curves(),
        "seconds": round(time.monotonic() - begin, 3),
        "processes": settings.processes,
        "examples": sum(part.windows.targets for part in parts.values()),
        "data": {name: part.counts() for name, part in parts.items()},
        **checkpoint.initial_weights(model_settings, start),
    }
    tuning.merge_lora_adapters(model)
    settings_used = {"variant": paths.variant, "model": model_settings, "training": settings}
    checkpoint.save(paths.checkpoint, model, inputs[0].processor, settings_used, record)


def build(
    model_settings: ModelSettings,
    settings: TrainingSettings,
    datasets: Sequence[VariantPaths],
    start: Path | None = None,
) -> tuple[DualTower, list[TowerInputs]]:
    """A tower on the backbone that the settings name, or from a checkpoint, and what it reads of each dataset.

    What the settings let learn is ready to learn. A residual is of one dataset's items: a joint training has none.

    Raises:
        BackboneError: the backbone cannot be loaded, or lacks what is to be tuned.
        CheckpointError: the checkpoint to start from is damaged.
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
        model.add_item_id_embedding(len(inputs[0].items), model_settings.item_id_dropout)
    tuning.select_trainable_weights(model, model_settings)
    return model.to(checkpoint.device()), inputs


def _training_texts(datasets: Sequence[VariantPaths]) -> Iterator[str]:
    """Texts of the items that occur in training: a tokenizer must not learn from what comes later."""
    for each in datasets:
        items = read_items(each.dataset).filter(pl.col(schemas.TRAIN_COUNT) > 0)
        yield from (prompts.item_text(item) for item in items.iter_rows(named=True))


class _Part(NamedTuple):
    """What one dataset brings to a training."""

    windows: TrainingWindows
    collator: Collator
    judge: Validation

    def counts(self) -> dict[str, int]:
        """How much there is of it."""
        inputs = self.collator.inputs
        return {
            "users": self.windows.users,
            "examples": self.windows.targets,
            "items": len(inputs),
            "items_with_photo": int((inputs.photo_rows != NO_PHOTO).sum()),
            "validation_users": self.judge.users,
        }


def _part(
    name: str,
    paths: VariantPaths,
    frozen: DualTower | None,
    inputs: TowerInputs,
    settings: TrainingSettings,
    engine: Engine,
) -> _Part:
    """Training windows, batches and validation of one dataset.

    Args:
        name: of the dataset.
        paths: of the variant in it.
        frozen: the model whose vision tower will not change, so that each photo is encoded once; else None.
        inputs: what the towers read.
        settings: of the training.
        engine: what encodes photos.

    Raises:
        ContractError: there is nothing to train on.
    """
    photos = None
    if inputs.pixels is not None:
        cache = paths.dataset.cache
        photos = feature_store(cache, frozen, inputs.pixels, engine) if frozen else pixel_store(inputs.pixels)
    sequences = read_sequences(paths.dataset, schemas.TRAIN)
    windows = TrainingWindows(
        inputs.numbers(sequences[schemas.ITEMS]),
        settings.max_history_len,
        settings.seed,
        sequences[schemas.MOMENTS] if settings.shuffle_ties else None,
    )
    if not len(windows):
        raise ContractError(
            f"no user of {name} has two interactions to train on; raise sequences.min_user_interactions to 4 or more "
            "(to 2 or more under the time split), or let its cuts come later"
        )
    counts = read_items(paths.dataset)[schemas.TRAIN_COUNT].to_numpy()
    negatives = Negatives(
        counts, settings.num_sampled_negatives, settings.seed, log_q_correction=settings.log_q_correction
    )
    share = RankInfo.current()
    judge = Validation(paths.dataset, inputs, photos, settings.max_history_len, GroupEngine(share))
    return _Part(windows, inputs.collator(photos, negatives, share), judge)


def _state_folder(paths: VariantPaths, run: str) -> Path:
    """Where this very run keeps its state; state and curves of another one, and half a state, are removed."""
    state = paths.training / run[:16]
    if not state.exists():
        files.remove(paths.training)
        files.remove(paths.curves)
    state.mkdir(parents=True, exist_ok=True)
    remove_unfinished(state)
    return state
