"""transformers' Trainer for the dual tower: its batches, its loss, validation by retrieval, sharded checkpoints."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import broadcast_object_list
from torch import Tensor, distributed
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.utils import is_torch_bf16_gpu_available

from pixrec_core import files
from pixrec_core.errors import SettingsError
from pixrec_core.models.dual_tower import Tower
from pixrec_core.progress import LINE_EVERY_S
from pixrec_core.settings import TrainingSettings
from pixrec_core.training import sharding
from pixrec_core.training.batches import JointWindows

log = logging.getLogger(__name__)

Epoch = dict[str, float]

LOGGING_STEPS = 10
FINISHED = "finished"  # marks a checkpoint of the Trainer as complete, so that a half-written one is never resumed
EPOCH_PREFIX, EVAL_PREFIX = "epoch_", "eval_"  # of an epoch's mean training losses and of its validation metrics


class DualTowerTrainer(Trainer):  # type: ignore[misc]  # transformers is untyped
    """Trains a dual tower, validates it by retrieval after each epoch, and keeps the weights of the best epoch.

    Without validation it trains a given number of epochs and keeps the weights of the last one.

    In a process group each process trains its part of every batch, with a replica of the model or a shard of it
    (`TrainingSettings.fsdp`). Only the first process logs and writes.

    Args:
        model: trained in place.
        dataset: training windows, of one or several datasets.
        settings: settings of the training.
        state: folder of the checkpoints that a killed training resumes from.
        curves: folder of TensorBoard event files.
        validate: returns metrics of a model; must contain "recall@10" and "ndcg@10". None trains without validation.
        on_epoch: called with the losses and metrics of each epoch.
        name: name of the run in progress lines.
        last_epoch: without validation: the last one. The learning rate follows the plan for all epochs of the settings.
    """

    def __init__(
        self,
        model: Tower,
        dataset: JointWindows,
        settings: TrainingSettings,
        state: Path,
        curves: Path,
        *,
        validate: Callable[[Tower], dict[str, float]] | None,
        on_epoch: Callable[[Epoch], None],
        name: str,
        last_epoch: int = 0,
    ) -> None:
        stop = EarlyStoppingCallback(settings.patience) if validate else _StopAfter(last_epoch)
        super().__init__(
            model=model,
            args=_training_arguments(settings, state, validates=validate is not None),
            data_collator=dataset.collate,
            train_dataset=dataset,
            eval_dataset=dataset,  # the Trainer requires one; `evaluate` does not read it
            callbacks=[stop, _FinishedMark()],
        )
        self.remove_callback(PrinterCallback)
        if self.is_world_process_zero():
            self.add_callback(_Progress(name))
            self.add_callback(_TensorBoard(curves))
        self._metric_for_best_model = settings.metric_for_best_model
        self.is_distributed_loading_by_transformers = self._fsdp = settings.fsdp  # keeps accelerate from adding DDP
        self._validate = validate
        self._on_epoch = on_epoch
        self._terms = model.loss_terms
        self._last_terms = torch.zeros(len(self._terms))
        self._term_sums: Tensor | float = 0.0
        self._steps = 0
        self._epoch_start = time.monotonic()

    def fit(self) -> None:
        """Train to the end, from the last complete epoch if there is one; with validation, load the best epoch."""
        resumed = last_finished(Path(self.args.output_dir))
        if resumed and (epochs := _epochs_if_over(resumed)):
            self.args.num_train_epochs = epochs  # patience had run out: only the best epoch remains to be loaded
        self.train(resume_from_checkpoint=resumed)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Shard the weights if settings ask for it, then create the optimiser: resumed weights are loaded by now."""
        if self._fsdp:
            sharding.shard(self.model)
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        return optimizer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the complete weights, in the first process."""
        weights = sharding.full_state_dict(self.model.state_dict())
        if self.args.should_save:
            self._save(output_dir, state_dict=weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Write both complete states, in the first process; the Trainer would write the first process's shard only."""
        state = sharding.full_state_dict(self.optimizer.state_dict())
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load what `_save_optimizer_and_scheduler` wrote; memory-mapped, since each process needs only its shard."""
        if checkpoint:
            state = torch.load(Path(checkpoint) / OPTIMIZER_NAME, map_location="cpu", weights_only=True, mmap=True)
            self.optimizer.load_state_dict(sharding.shard_optimizer_state(state, self.optimizer))
            self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def _load_best_model(self) -> None:
        """Skip sharded models: `load_best` loads the weights into a complete one."""
        if not self._fsdp:
            super()._load_best_model()

    def load_best(self, model: Tower) -> None:
        """Load the weights of the best epoch, without validation of the last one, into a model of the same shape."""
        self._load_from_checkpoint(self.state.best_model_checkpoint or last_finished(Path(self.args.output_dir)), model)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return batches of one dataset each.

        Every process iterates over all batches, and its collator takes a part of each. accelerate would give whole
        batches to each process, so that items of different processes would not be each other's negatives.
        """
        dataset: JointWindows = self.train_dataset
        batches = dataset.batch_sampler(self.args.train_batch_size, self.args.seed)
        loader = DataLoader(
            dataset, batch_sampler=batches, collate_fn=self.data_collator, pin_memory=self.args.dataloader_pin_memory
        )
        prepared: DataLoader[Any] = prepare_data_loader(
            loader, self.args.device, num_processes=1, process_index=0, put_on_device=True
        )
        return prepared

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any) -> Any:
        """Return the mixed loss of this process's part of a batch; its terms are summed for the epoch's record.

        DDP and FSDP average gradients over processes, but a loss here is a part of the batch's loss, not a mean:
        hence the factor.
        """
        outputs = model(**inputs)
        terms = torch.stack([outputs[term].detach() for term in self._terms])
        self._last_terms = self.accelerator.reduce(terms, "sum")
        self._term_sums = self._term_sums + self._last_terms
        self._steps += 1
        loss = outputs.loss * self.args.world_size
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the terms of the last step; the Trainer's own mean since the last log differs after a resume."""
        if "loss" in logs:
            logs |= dict(zip(self._terms, self._last_terms.tolist(), strict=True))
        if "train_runtime" not in logs:  # counted from the last resume, so misleading
            super().log(logs, start_time)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validate, log the epoch and call `on_epoch`.

        Raises:
            SettingsError: a loss of the epoch is infinite or not a number.
        """
        metrics: dict[str, float] = broadcast_object_list([self._epoch_metrics()])[0]
        if not all(math.isfinite(value) for name, value in metrics.items() if name.startswith(EPOCH_PREFIX)):
            raise SettingsError(
                f"the training has diverged: a loss of epoch {round(self.state.epoch)} is not a number. Lower "
                "training.learning_rate"
            )
        self._term_sums, self._steps, self._epoch_start = 0.0, 0, time.monotonic()
        self.log(metrics)  # adds the epoch
        self._on_epoch(_epoch_record(metrics))
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _epoch_metrics(self) -> dict[str, float]:
        """Return mean losses and validation metrics of the epoch that ends, with their prefixes."""
        metrics: dict[str, float] = {}
        if self._validate is not None:
            self.model.eval()
            with sharding.gathered_weights(self.model):
                metrics = self._validate(self.model)
            self.model.train()
        losses = {}
        if isinstance(self._term_sums, Tensor):
            losses = {
                term: total / self._steps for term, total in zip(self._terms, self._term_sums.tolist(), strict=True)
            }
        losses["seconds"] = round(time.monotonic() - self._epoch_start, 3)
        prefixed = {EPOCH_PREFIX + name: value for name, value in losses.items()}
        return prefixed | {EVAL_PREFIX + name: value for name, value in metrics.items()}

    def curves(self) -> dict[str, Any]:
        """Return the record of every epoch, including those before a resume, and with validation of the best one."""
        ends = [entry for entry in self.state.log_history if f"{EPOCH_PREFIX}seconds" in entry]
        epochs, best = [_epoch_record(entry) for entry in ends], {}
        if self._validate is not None:
            found = max(epochs, key=lambda epoch: epoch[self._metric_for_best_model])
            best = {
                "best_epoch": found["epoch"],
                "validation_ndcg@10": found["ndcg@10"],
                "validation_recall@10": found["recall@10"],
                "seen_offset": found.get("seen_offset", 0.0),
            }
        return {
            "epochs": epochs,
            **best,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "trained_parameters": sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            "steps": self.state.global_step,
        }


def _epoch_record(logs: Mapping[str, float]) -> Epoch:
    """Return an epoch's log entry as it is reported: the number of the epoch, losses and metrics without prefixes."""
    record: Epoch = {"epoch": round(logs["epoch"])}
    for name, value in logs.items():
        if name.startswith((EPOCH_PREFIX, EVAL_PREFIX)):
            record[name.removeprefix(EPOCH_PREFIX).removeprefix(EVAL_PREFIX)] = value
    return record


def remove_unfinished(state: Path) -> None:
    """Remove checkpoints that a killed training left half-written."""
    for folder in state.glob("checkpoint-*"):
        if not (folder / FINISHED).exists():
            files.remove(folder)


def last_finished(state: Path) -> str | None:
    """Return the folder of the newest complete epoch, to resume from."""
    marks = state.glob(f"checkpoint-*/{FINISHED}")
    folders = sorted((mark.parent for mark in marks), key=lambda folder: int(folder.name.rpartition("-")[2]))
    return str(folders[-1]) if folders else None


def _epochs_if_over(folder: str) -> int | None:
    """Return how many epochs a saved training took if it had ended; None if some epochs are left."""
    state = TrainerState.load_from_json(str(Path(folder) / TRAINER_STATE_NAME))
    stopped = state.stateful_callbacks[TrainerControl.__name__]["args"]["should_training_stop"]
    return round(state.epoch) if stopped else None


def _training_arguments(settings: TrainingSettings, state: Path, *, validates: bool) -> TrainingArguments:
    gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(state),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,  # of all processes together: each takes a part
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        seed=settings.seed,
        bf16=settings.precision == "bfloat16" or (settings.precision == "auto" and is_torch_bf16_gpu_available()),
        use_cpu=not gpu,
        activation_checkpointing=settings.gradient_checkpointing,
        ddp_find_unused_parameters=True,  # a process may have no photo in a batch
        dataloader_pin_memory=gpu,
        eval_strategy="epoch",
        save_strategy="epoch",
        restore_callback_states_from_checkpoint=True,  # patience continues to count after a resume
        load_best_model_at_end=validates,
        metric_for_best_model=settings.metric_for_best_model if validates else None,
        greater_is_better=True,
        remove_unused_columns=False,
        logging_steps=LOGGING_STEPS,
        logging_first_step=True,
        report_to=[],
        disable_tqdm=True,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # DataParallel would break indices into the batch
    return arguments


class _Progress(TrainerCallback):  # type: ignore[misc]
    """Logs a line every few seconds and one per epoch."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        now = time.monotonic()
        if now - self._last >= LINE_EVERY_S:
            self._last = now
            log.info(
                "%s: step %d of %d, epoch %.1f of %g",
                self._name,
                state.global_step,
                state.max_steps,
                state.epoch,
                args.num_train_epochs,
            )

    def on_evaluate(self, _args: Any, _state: Any, _control: Any, metrics: dict[str, float], **_: Any) -> None:
        log.info("%s: %s", self._name, ", ".join(f"{name} {n:.4g}" for name, n in _epoch_record(metrics).items()))


class _StopAfter(TrainerCallback):  # type: ignore[misc]
    """Ends a training after an epoch, before the planned number of epochs."""

    def __init__(self, last_epoch: int) -> None:
        self._last_epoch = last_epoch

    def on_evaluate(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        if round(state.epoch) >= self._last_epoch:
            control.should_training_stop = True


class _FinishedMark(TrainerCallback):  # type: ignore[misc]
    """Marks a checkpoint once all of its files are written, and only then removes older ones.

    `save_total_limit` cannot do this: it removes the previous best epoch before the new checkpoint, which names a
    better one, is complete.
    """

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        if args.world_size > 1:
            distributed.barrier()  # each process writes the state of its random number generators
        if not state.is_world_process_zero:
            return
        newest = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        (newest / FINISHED).touch()
        kept = {newest.name, Path(state.best_model_checkpoint or newest).name}
        for folder in Path(args.output_dir).glob("checkpoint-*"):
            if folder.name not in kept:
                files.remove(folder)


class _TensorBoard(TensorBoardCallback):  # type: ignore[misc]
    """transformers' callback with one addition: a resumed training replaces the points of the killed one."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        self.tb_writer = SummaryWriter(str(self._folder), purge_step=state.global_step + 1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        super().on_log(args, state, control, {name: value for name, value in logs.items() if name != "epoch"})
