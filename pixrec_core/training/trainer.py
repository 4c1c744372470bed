"""transformers' Trainer, fitted to the dual tower."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
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
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.utils import is_torch_bf16_gpu_available

from pixrec_core import files
from pixrec_core.models import process_group
from pixrec_core.models.dual_tower import DualTower
from pixrec_core.progress import LINE_EVERY_S
from pixrec_core.settings import TrainingSettings
from pixrec_core.training import sharding
from pixrec_core.training.mixture import Mixture, OneDatasetBatches

log = logging.getLogger(__name__)

Epoch = dict[str, float]

CURVE_EVERY = 10  # steps between two points of the live curves
FINISHED = "finished"  # marks an epoch's state as whole, so that what a killed writer left is never resumed
TERMS = ("loss", "generation", "item_item", "user_item")


class DualTowerTrainer(Trainer):  # type: ignore[misc]  # transformers is untyped
    """Trains a dual tower, judges it after each epoch by retrieval, and keeps the best epoch's weights.

    In a process group each process trains its share of every batch, with its own copy of the model or its part of one
    (`TrainingSettings.fsdp`); the first alone tells and writes.

    Args:
        model: to be trained in place.
        mixture: what it trains on.
        settings: of the training.
        state: folder for what a resumed run needs.
        curves: folder of TensorBoard event files: each term and the learning rate every `CURVE_EVERY` steps, and
            every epoch's record.
        validate: measures a model; must return "recall@10" and "ndcg@10".
        on_epoch: told of each epoch.
        name: of the run, for progress lines.
    """

    def __init__(
        self,
        model: DualTower,
        mixture: Mixture,
        settings: TrainingSettings,
        state: Path,
        curves: Path,
        *,
        validate: Callable[[DualTower], dict[str, float]],
        on_epoch: Callable[[Epoch], None],
        name: str,
    ) -> None:
        super().__init__(
            model=model,
            args=_arguments(settings, state),
            data_collator=mixture.collate,
            train_dataset=mixture,
            eval_dataset=mixture,  # the Trainer wants one; `evaluate` reads its own
            callbacks=[EarlyStoppingCallback(settings.patience), _MarkFinished()],
        )
        self.remove_callback(PrinterCallback)
        self.terms: dict[str, Tensor] = {}
        if self.is_world_process_zero():
            self.add_callback(_Progress(name))
            self.add_callback(_Curves(curves, self.terms))
        self._metric_for_best_model = settings.metric_for_best_model
        self.is_distributed_loading_by_transformers = self._in_parts = settings.fsdp  # else it would be wrapped in DDP
        self._validate = validate
        self._on_epoch = on_epoch
        self._sums: dict[str, Tensor | float] = defaultdict(float)
        self._steps = 0
        self._epoch_start = time.monotonic()

    def fit(self) -> None:
        """Train to the end, from the last whole epoch where there is one, and load the best epoch's weights."""
        resumed = last_finished(Path(self.args.output_dir))
        if resumed and (epochs := _epochs_if_over(resumed)):
            self.args.num_train_epochs = epochs  # patience had run out: nothing is left but to load the best epoch
        self.train(resume_from_checkpoint=resumed)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimiser, of weights that are dealt out before: what a run resumes from is in them by now."""
        if self._in_parts:
            sharding.shard(self.model)
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        return optimizer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write all weights, by the first process."""
        weights = sharding.full_state_dict(self.model.state_dict())
        if self.args.should_save:
            self._save(output_dir, state_dict=weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Write the state of both, by the first process; transformers itself would write its part alone."""
        state = sharding.full_state_dict(self.optimizer.state_dict())
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """What `_save_optimizer_and_scheduler` wrote, mapped into memory: each process wants a part."""
        if checkpoint:
            state = torch.load(Path(checkpoint) / OPTIMIZER_NAME, map_location="cpu", weights_only=True, mmap=True)
            self.optimizer.load_state_dict(sharding.shard_optimizer_state(state, self.optimizer))
            self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def _load_best_model(self) -> None:
        """Not into parts, since whoever wants the best weights wants them whole: see `load_best`."""
        if not self._in_parts:
            super()._load_best_model()

    def load_best(self, model: DualTower) -> None:
        """The best epoch's weights into a model like the one that was trained."""
        self._load_from_checkpoint(self.state.best_model_checkpoint, model)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of one dataset each; transformers itself would cut them from one long row of examples.

        Every process goes through all of them, since the collator takes its share of each: accelerate itself would
        hand whole batches out, whose items would not meet.
        """
        mixture: Mixture = self.train_dataset
        batches = OneDatasetBatches(mixture.windows, self.args.train_batch_size, self.args.seed)
        loader = DataLoader(
            mixture, batch_sampler=batches, collate_fn=self.data_collator, pin_memory=self.args.dataloader_pin_memory
        )
        prepared: DataLoader[Any] = prepare_data_loader(
            loader, self.args.device, num_processes=1, process_index=0, put_on_device=True
        )
        return prepared

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any) -> Any:
        """The mixed loss of a batch; its terms are all_reduce_sum up for the epoch's record.

        Gradients are averaged over processes, and each one's loss is only its part of the batch's: hence the factor.
        """
        outputs = model(**inputs)
        whole = process_group.all_reduce_sum(torch.stack([outputs[term].detach() for term in TERMS]))
        for term, value in zip(TERMS, whole, strict=True):
            self.terms[term] = value
            self._sums[term] = self._sums[term] + value
        self._steps += 1
        loss = outputs.loss * self.args.world_size
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validate, record the epoch, and tell whoever listens."""
        epoch = process_group.broadcast_object(self._record())
        self._sums.clear()
        self._steps, self._epoch_start = 0, time.monotonic()
        prefixed = {f"eval_{key}": value for key, value in epoch.items()}
        self.log(prefixed)
        self._on_epoch(epoch)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, prefixed)
        return prefixed

    def _record(self) -> Epoch:
        """Losses and validation metrics of the epoch that ends."""
        self.model.eval()
        with sharding.gathered_weights(self.model):
            metrics = self._validate(self.model)
        self.model.train()
        losses = {term: float(self._sums[term]) / self._steps for term in TERMS} if self._steps else {}
        seconds = time.monotonic() - self._epoch_start
        return {"epoch": round(self.state.epoch), **losses, **metrics, "seconds": round(seconds, 3)}

    def curves(self) -> dict[str, Any]:
        """Every epoch's record, those before a resume included, and which was best."""
        prefix = "eval_"
        epochs = [
            {key.removeprefix(prefix): value for key, value in entry.items() if key.startswith(prefix)}
            for entry in self.state.log_history
            if prefix + self._metric_for_best_model in entry
        ]
        best = max(epochs, key=lambda epoch: epoch[self._metric_for_best_model])
        return {
            "epochs": epochs,
            "best_epoch": best["epoch"],
            "validation_ndcg@10": best["ndcg@10"],
            "validation_recall@10": best["recall@10"],
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "trained_parameters": sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            "steps": self.state.global_step,
        }


def remove_unfinished(state: Path) -> None:
    """Remove what a killed writer left half."""
    for folder in state.glob("checkpoint-*"):
        if not (folder / FINISHED).exists():
            files.remove(folder)


def last_finished(state: Path) -> str | None:
    """Folder of the newest whole epoch, to resume from."""
    marks = state.glob(f"checkpoint-*/{FINISHED}")
    folders = sorted((mark.parent for mark in marks), key=lambda folder: int(folder.name.rpartition("-")[2]))
    return str(folders[-1]) if folders else None


def _epochs_if_over(folder: str) -> int | None:
    """Epochs that a saved training took, if it had come to its end; None where some are left."""
    state = TrainerState.load_from_json(str(Path(folder) / TRAINER_STATE_NAME))
    stopped = state.stateful_callbacks[TrainerControl.__name__]["args"]["should_training_stop"]
    return round(state.epoch) if stopped else None


def _arguments(settings: TrainingSettings, state: Path) -> TrainingArguments:
    gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(state),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,  # of all processes together: each takes its share
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        seed=settings.seed,
        bf16=settings.precision == "bfloat16" or (settings.precision == "auto" and is_torch_bf16_gpu_available()),
        use_cpu=not gpu,
        activation_checkpointing=settings.gradient_checkpointing,
        ddp_find_unused_parameters=True,  # a share may hold no photo, and none may be left waiting for its gradient
        dataloader_pin_memory=gpu,
        eval_strategy="epoch",
        save_strategy="epoch",
        restore_callback_states_from_checkpoint=True,  # or patience would begin anew with each resume
        load_best_model_at_end=True,
        metric_for_best_model=settings.metric_for_best_model,
        greater_is_better=True,
        remove_unused_columns=False,
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # DataParallel would split pairs from the rows that they point to
    return arguments


class _Progress(TrainerCallback):  # type: ignore[misc]
    """A line every few seconds and one an epoch."""

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
        told = ", ".join(f"{key.removeprefix('eval_')} {value:.4g}" for key, value in metrics.items())
        log.info("%s: %s", self._name, told)


class _MarkFinished(TrainerCallback):  # type: ignore[misc]
    """Marks an epoch's state once all of its files are written, and only then removes what it supersedes.

    The Trainer's own limit would remove the best epoch that the last whole state names before the state that
    names a better one is whole.
    """

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        if args.world_size > 1:
            distributed.barrier()  # each process writes the state of its own random numbers
        if not state.is_world_process_zero:
            return
        newest = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        (newest / FINISHED).touch()
        for folder in Path(args.output_dir).glob("checkpoint-*"):
            if folder not in {newest, Path(state.best_model_checkpoint)}:
                files.remove(folder)


class _Curves(TrainerCallback):  # type: ignore[misc]
    """Live curves as TensorBoard reads them; a resumed run's points take the place of a killed one's.

    Args:
        folder: of the event files.
        terms: of the loss, as the last step left them; reading one makes a GPU wait, so not at each step.
    """

    def __init__(self, folder: Path, terms: Mapping[str, Tensor]) -> None:
        self._folder = folder
        self._terms = terms

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        self._writer = SummaryWriter(str(self._folder), purge_step=state.global_step + 1)

    def on_step_end(self, _args: Any, state: Any, _control: Any, lr_scheduler: Any, **_: Any) -> None:
        if (state.global_step - 1) % CURVE_EVERY == 0:
            rate = lr_scheduler.get_last_lr()[0]
            self._add("step", {**self._terms, "learning_rate": rate}, state.global_step)

    def on_evaluate(self, _args: Any, state: Any, _control: Any, metrics: dict[str, float], **_: Any) -> None:
        named = {key.removeprefix("eval_"): value for key, value in metrics.items()}
        self._add("epoch", named, state.global_step)

    def on_train_end(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        self._writer.close()

    def _add(self, group: str, values: Mapping[str, Tensor | float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{group}/{name}", float(value), step)
        self._writer.flush()
