"""A training that is killed at any moment resumes and ends with the same bits."""

import logging
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pixrec_core import files, pipeline
from pixrec_core.models import checkpoint
from pixrec_core.models.backbones import Processor
from pixrec_core.models.dual_tower import DualTower
from pixrec_core.models.frozen_features import FrozenEncoders
from pixrec_core.stages import Work
from pixrec_core.training import trainer
from pixrec_core.training.trainer import FINISHED, last_finished, remove_unfinished
from pixrec_core.training.validation import Validation
from tests.core.shop import open_shop
from tests.forks import exit_code

EPOCHS = 3


def train_and_die(folder: Path, where: str | int, how: signal.Signals, model: dict) -> None:
    """Train until a step or until the middle of writing a file, then kill this process."""
    trainer.LOGGING_STEPS = 1

    def die(*_, **__) -> None:
        os.kill(os.getpid(), how)
        signal.pause()

    def die_at_step(_self, _args, state, _control, **_) -> None:
        if state.global_step == where:
            die()

    if where == "state":
        trainer.DualTowerTrainer._save_rng_state = die  # after weights and optimiser, before the rest
    elif where == "mark":
        trainer._FinishedMark.on_save = die
    elif where == "checkpoint":
        Processor.save_pretrained = FrozenEncoders.save_pretrained = die
    else:
        trainer._Progress.on_step_end = die_at_step
    pipeline.CHECKPOINT.materialise(open_shop(folder, model=model, training={"epochs": EPOCHS}))


def kill(folder: Path, where: str | int, how: signal.Signals, model: dict) -> None:
    assert exit_code(train_and_die, folder, where, how, model) == -how


def points(work: Work) -> dict[tuple[str, int], float]:
    """Every point of the TensorBoard curves except times; no point is there twice."""
    events = EventAccumulator(str(work.variant_paths.curves), size_guidance={"scalars": 0})
    events.Reload()
    found = [(tag, e.step, e.value) for tag in events.Tags()["scalars"] for e in events.Scalars(tag)]
    assert len(found) == len({(tag, step) for tag, step, _ in found})
    return {(tag, step): value for tag, step, value in found if not tag.endswith("seconds")}


def epochs(work: Work) -> list[dict]:
    record = files.read_json(work.variant_paths.checkpoint / checkpoint.CURVES)
    return [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in record["epochs"]]


@pytest.mark.parametrize(
    "model", [pytest.param({"user_encoder": "tokens"}, marks=pytest.mark.slow), {"user_encoder": "items"}], ids=str
)
def test_a_training_killed_again_and_again_ends_with_the_same_bits(opened: Path, tmp_path, monkeypatch, model) -> None:
    monkeypatch.setattr(trainer, "LOGGING_STEPS", 1)
    for name in ("whole", "killed"):
        shutil.copytree(opened, tmp_path / name)
    whole, hurt = (open_shop(tmp_path / name, model=model, training={"epochs": EPOCHS}) for name in ("whole", "killed"))
    steps = pipeline.CHECKPOINT.materialise(whole)["stats"]["steps"]
    one = steps // EPOCHS
    assert one > 3

    folder = tmp_path / "killed"
    state = hurt.variant_paths.training
    kill(folder, 2, signal.SIGTERM, model)
    assert not list(state.glob(f"*/*/{FINISHED}"))
    kill(folder, one + 3, signal.SIGKILL, model)
    kill(folder, "state", signal.SIGKILL, model)
    kill(folder, "mark", signal.SIGTERM, model)
    assert [path.parent.name for path in state.glob(f"*/*/{FINISHED}")] == [f"checkpoint-{one}"]
    kill(folder, "checkpoint", signal.SIGKILL, model)
    assert not hurt.variant_paths.checkpoint.exists()
    pipeline.CHECKPOINT.materialise(hurt)

    assert epochs(hurt) == epochs(whole)
    assert points(hurt) == points(whole)
    assert {step for tag, step in points(whole) if tag == "train/loss"} == set(range(1, steps + 1))
    cards = [(each.variant_paths.checkpoint / checkpoint.CARD).read_text() for each in (whole, hurt)]
    assert cards[0] == cards[1]
    weights = [load_file(each.variant_paths.checkpoint / checkpoint.WEIGHTS) for each in (whole, hurt)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_tensorboard_shows_live_losses_and_the_record_of_every_epoch(shop, caplog) -> None:
    caplog.set_level(logging.INFO, "pixrec_core.training.trainer")
    work = shop("text_only")
    steps = pipeline.CHECKPOINT.materialise(work)["stats"]["steps"]
    curves, records = points(work), epochs(work)
    logged = {1, *range(trainer.LOGGING_STEPS, steps + 1, trainer.LOGGING_STEPS)}
    for name in (*DualTower.loss_terms, "learning_rate"):
        assert {step for tag, step in curves if tag == f"train/{name}"} == logged
    for number, epoch in enumerate(records, start=1):
        step = number * steps // 2
        assert curves["train/epoch_loss", step] == pytest.approx(epoch["loss"], rel=1e-6)
        for name in ("ndcg@10", "recall@10"):
            assert curves[f"eval/{name}", step] == pytest.approx(epoch[name], rel=1e-6)
    assert not any(tag.endswith("/epoch") for tag, _ in curves)
    lines = [record.message for record in caplog.records if "recall@10" in record.message]
    assert [line.count("epoch") for line in lines] == [1, 1]
    assert [line.partition(",")[0] for line in lines] == ["text_only: epoch 1", "text_only: epoch 2"]


def test_curves_show_the_last_training_only(shop) -> None:
    pipeline.CHECKPOINT.materialise(shop("text_only"))
    work = shop("text_only", training={"epochs": 1})
    pipeline.CHECKPOINT.materialise(work)
    assert len({step for tag, step in points(work) if tag == "eval/recall@10"}) == 1


class CrashError(Exception):
    """Ends a training as a crash would."""


def best_epoch_first(monkeypatch) -> None:
    """Let every validation be worse than the one before."""
    calls = iter(range(1, 100))
    monkeypatch.setattr(Validation, "__call__", lambda *_: dict.fromkeys(("ndcg@10", "recall@10"), 1 / next(calls)))


def test_patience_continues_to_count_after_a_crash(shop, monkeypatch) -> None:
    best_epoch_first(monkeypatch)
    work = shop("text_only", training={"epochs": 6, "patience": 2})

    def crash(epoch: dict) -> None:
        if epoch["epoch"] == 3:
            raise CrashError

    with pytest.raises(CrashError):
        pipeline.CHECKPOINT.materialise(work, on_epoch=crash)
    reported = []
    assert pipeline.CHECKPOINT.materialise(work, on_epoch=reported.append)["stats"]["best_epoch"] == 1
    assert [epoch["epoch"] for epoch in reported] == [3], "the second and third are no better than the first"


def test_a_training_whose_patience_ran_out_is_not_continued(shop, monkeypatch) -> None:
    best_epoch_first(monkeypatch)
    work = shop("text_only", training={"epochs": 6, "patience": 1})
    save = checkpoint.save

    def crash(*_) -> None:
        raise CrashError

    monkeypatch.setattr(checkpoint, "save", crash)
    with pytest.raises(CrashError):
        pipeline.CHECKPOINT.materialise(work)
    monkeypatch.setattr(checkpoint, "save", save)
    reported = []
    stats = pipeline.CHECKPOINT.materialise(work, on_epoch=reported.append)["stats"]
    assert reported == []
    assert (stats["best_epoch"], len(epochs(work))) == (1, 2)


def test_a_half_written_checkpoint_is_never_resumed(tmp_path: Path) -> None:
    for step, finished in ((5, True), (10, True), (15, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if finished:
            (tmp_path / f"checkpoint-{step}" / FINISHED).touch()
    assert last_finished(tmp_path) == str(tmp_path / "checkpoint-10")
    remove_unfinished(tmp_path)
    assert last_finished(tmp_path) == str(tmp_path / "checkpoint-10")
    assert not (tmp_path / "checkpoint-15").exists()
