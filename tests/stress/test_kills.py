"""Stages that are killed at random moments leave no partial artefact, and build the same when they run again."""

import json
import os
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest

from pixrec_core import files, pipeline, recommenders
from pixrec_core.recommenders import _sequence_training
from pixrec_core.serving.promotion import read_promotion
from pixrec_core.settings import Settings
from pixrec_core.stages import Stage, Work
from tests.core import shop
from tests.core.test_faults import content, tables
from tests.forks import CONTEXT, PRELOADED

#: What stages import when they run: a process is to be killed in its work.
IMPORTED = [
    "great_expectations",
    "pixrec_core.evaluation.evaluate",
    "pixrec_core.report.build",
    "pixrec_core.serving.refit",
]
VARIANT = "multimodal"
#: Stages that run for one dataset and variant, inputs first; `joint_checkpoint` is a checkpoint of several datasets.
STAGES = {stage.name: stage for stage in pipeline.STAGES if stage is not pipeline.JOINT_CHECKPOINT}
MAX_KILLS = 3
#: What differs between two builds: times, and the number of a promotion.
VOLATILE = {"seconds", "seconds_by_method", "finished_at", "promoted_at", "trained_at", "refitted_at"}


def settings(root: Path) -> Settings:
    """Settings of a small shop: a tower that trains in seconds, and enough users to train a blend."""
    model = {"user_encoder": "items", "embedding_dim": 16}
    training = {"epochs": 3, "max_history_len": 4}
    small = shop.settings(root, model=model, training=training, source={"users": 150})
    return small.model_copy(update={"variants": (VARIANT,)})


def run_stage(root: Path, name: str) -> None:
    """Build one stage; the target of a process."""
    _sequence_training.EPOCHS = 2
    recommenders.baseline_names = lambda: ["popularity", "ease", "sasrec"]
    STAGES[name].materialise(Work(settings(root), "shop", VARIANT))


def run(root: Path, name: str, random: Random | None = None, longest_s: float = 0.0) -> bool:
    """Run a stage in a process, which is killed at a random moment if `random` is given; return whether it was."""
    process = CONTEXT.Process(target=run_stage, args=(root, name))
    process.start()
    process.join(random.uniform(0, longest_s) if random else None)
    is_killed = process.is_alive()
    process.kill()
    process.join()
    assert is_killed or process.exitcode == 0
    return is_killed


def lasting(value: Any) -> Any:
    """A JSON value without what differs between two builds."""
    if isinstance(value, dict):
        return {name: lasting(each) for name, each in value.items() if name not in VOLATILE}
    return [lasting(each) for each in value] if isinstance(value, list) else value


def comparable(name: str, data: bytes) -> object:
    if name.endswith(".json"):
        return lasting(json.loads(data))
    if name.endswith(".parquet"):
        return pl.read_parquet(data).to_dicts()
    return data


def contents(work: Work, name: str) -> object:
    """Content of a stage's artefact that two builds have in common; None if it does not exist."""
    path = STAGES[name].artefact(work)
    if not path.exists():
        return None
    if path == work.paths.promoted.manifest:  # its number and files depend on what was promoted before
        promotion = read_promotion(work.paths.promoted)
        return promotion.method, sorted(promotion.methods)
    if path.suffix == ".duckdb":
        return tables(path)
    return {file: comparable(file or path.name, data) for file, data in content(path).items() if file != "index.html"}


@pytest.mark.timeout(0)
def test_kills(tmp_path: Path, rounds, capsys) -> None:
    CONTEXT.set_forkserver_preload([*PRELOADED, *IMPORTED])
    work, kills = Work(settings(tmp_path), "shop", VARIANT), dict.fromkeys(STAGES, 0)
    for name in STAGES:
        run(tmp_path, name)
    expected = {name: contents(work, name) for name in STAGES}
    seconds = {name: stamp["seconds"] for name, stage in STAGES.items() if (stamp := stage.stamp(work))}
    for random in rounds():
        name = random.choice([*STAGES])
        stage: Stage = STAGES[name]
        files.remove(stage.stamp_path(work))
        if stage is pipeline.CHECKPOINT and random.random() < 0.5:
            files.remove(stage.artefact(work))
        before = contents(work, name)
        for _ in range(random.randint(1, MAX_KILLS)):
            kills[name] += run(tmp_path, name, random, 1 + seconds[name])
            assert contents(work, name) in (before, expected[name]), "the artefact is the earlier or a complete new one"
        files.remove(stage.stamp_path(work))
        run(tmp_path, name)
        assert contents(work, name) == expected[name], name
        assert stage.is_current(work)
        assert not list(work.paths.root.rglob(".*.partial"))
    with capsys.disabled():
        os.write(1, f"\nkills: {sum(kills.values()):,}: {kills}\n".encode())
