"""transformers' Trainer, fitted to the dual tower."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available

from pixrec_core import files
from pixrec_core.models.collate import Collator
from pixrec_core.models.dual_tower import DualTower
from pixrec_core.models.windows import Windows
from pixrec_core.progress import LINE_EVERY_S
from pixrec_core.settings import TrainingSettings
from pixrec_core.training.sampler import LengthGroupedSampler

log = logging.getLogger(__name__)

Epoch = dict[str, float]

BEST_BY = "ndcg@10"
FINISHED = "finished"  # marks an epoch's state as whole, so that what a killed writer left is never resumed
TERMS = ("loss", "generation", "item_item", "user_item")


class DualTowerTrainer(Trainer):  # type: ignore[misc]  # transformers is untyped
    """Trains a dual tower, judges it after each epoch by retrieval, and keeps the best epoch's weights.

    Args:
        model: to be trained in place.
        windows: what it trains on.
        collator: makes batches of windows.
        settings: of the training.
        state: folder for what a resumed run needs.
        validate: measures a model; must return `BEST_BY`.
        on_epoch: told of each epoch.
        name: of the run, for progress lines.
    """

    def __init__(
        self,
        model: DualTower,
        windows: Windows,
        collator: Collator,
        settings: TrainingSettings,
        state: Path,
        *,
        validate: Callable[[DualTower], dict[str, float]],
        on_epoch: Callable[[Epoch], None],
        name: str,
    ) -> None:
        super().__init__(
            model=model,
            args=_arguments(settings, state),
            data_collator=collator,
            train_dataset=windows,
            eval_dataset=windows,  # the Trainer wants one; `evaluate` reads its own
            callbacks=[EarlyStoppingCallback(settings.patience), _Progress(name), _MarkFinished()],
        )
        self.remove_callback(PrinterCallback)
        self._validate = validate
        self._on_epoch = on_epoch
        self._sums: dict[str, Tensor | float] = defaultdict(float)
        self._steps = 0
        self._epoch_start = time.monotonic()

    def _get_train_sampler(self, *_: Any) -> LengthGroupedSampler:
        return LengthGroupedSampler(self.train_dataset, self.args.train_batch_size, self.args.seed)

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any) -> Any:
        """The mixed loss of a batch; its terms are summed up for the epoch's record."""
        outputs = model(**inputs)
        for term in TERMS:
            self._sums[term] = self._sums[term] + outputs[term].detach()
        self._steps += 1
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validate, record the epoch, and tell whoever listens."""
        self.model.eval()
        metrics = self._validate(self.model)
        self.model.train()
        losses = {term: float(self._sums[term]) / self._steps for term in TERMS} if self._steps else {}
        seconds = time.monotonic() - self._epoch_start
        epoch = {"epoch": round(self.state.epoch), **losses, **metrics, "seconds": round(seconds, 3)}
        self._sums.clear()
        self._steps, self._epoch_start = 0, time.monotonic()
        prefixed = {f"eval_{key}": value for key, value in epoch.items()}
        self.log(prefixed)
        self._on_epoch(epoch)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, prefixed)
        return prefixed

    def curves(self) -> dict[str, Any]:
        """Every epoch's record, those before a resume included, and which was best."""
        prefix = "eval_"
        epochs = [
            {key.removeprefix(prefix): value for key, value in entry.items() if key.startswith(prefix)}
            for entry in self.state.log_history
            if prefix + BEST_BY in entry
        ]
        best = max(epochs, key=lambda epoch: epoch[BEST_BY])
        return {
            "epochs": epochs,
            "best_epoch": best["epoch"],
            f"validation_{BEST_BY}": best[BEST_BY],
            "validation_recall@10": best["recall@10"],
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "trained_parameters": sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            "steps": self.state.global_step,
        }


def last_finished(state: Path) -> str | None:
    """Folder of the newest whole epoch, to resume from; what a killed writer left half is removed."""
    folders = sorted(state.glob("checkpoint-*"), key=lambda folder: int(folder.name.rpartition("-")[2]))
    for folder in [f for f in folders if not (f / FINISHED).exists()]:
        files.remove(folder)
        folders.remove(folder)
    return str(folders[-1]) if folders else None


def _arguments(settings: TrainingSettings, state: Path) -> TrainingArguments:
    gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(state),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_users,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup_share,
        weight_decay=settings.weight_decay,
        seed=settings.seed,
        bf16=settings.precision == "bfloat16" or (settings.precision == "auto" and is_torch_bf16_gpu_available()),
        use_cpu=not gpu,
        activation_checkpointing=settings.gradient_checkpointing,
        dataloader_pin_memory=gpu,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=BEST_BY,
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
    """Marks an epoch's state once all of its files are written."""

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / FINISHED).touch()
