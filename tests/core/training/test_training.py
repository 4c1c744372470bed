"""Training on a small shop: what it leaves, how it resumes, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from transformers import set_seed

from pixrec_core import pipeline
from pixrec_core.errors import BackboneError, CheckpointError, ContractError
from pixrec_core.models import checkpoint
from pixrec_core.models.backbones import tiny
from pixrec_core.models.dual_tower import DualTower
from pixrec_core.stages import Work
from pixrec_core.training.trainer import FINISHED, last_finished


def curves(work: Work) -> list[dict]:
    epochs = json.loads((work.variant_paths.checkpoint / checkpoint.CURVES).read_text())["epochs"]
    return [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in epochs]


def weights(work: Work) -> dict[str, torch.Tensor]:
    return load_file(work.variant_paths.checkpoint / checkpoint.WEIGHTS)


def test_a_checkpoint_holds_all_that_it_takes(shop) -> None:
    work = shop()
    told = []
    stats = pipeline.CHECKPOINT.materialise(work, on_epoch=told.append)["stats"]
    folder = work.variant_paths.checkpoint
    assert {p.name for p in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "settings.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
    }
    assert [epoch["epoch"] for epoch in told] == [1, 2]
    assert told[1]["loss"] < told[0]["loss"]
    assert stats["best_epoch"] == max(told, key=lambda epoch: epoch["ndcg@10"])["epoch"]
    model, processor = checkpoint.load(folder)
    assert isinstance(model, DualTower)
    assert processor.text_ids("Title: Wool") == processor.text_ids("Title: Wool")
    assert not work.variant_paths.training.exists()


@pytest.mark.parametrize("variant", ["text_only", "image_only", "shuffled_images"])
def test_every_variant_trains_by_the_same_code(shop, variant: str) -> None:
    work = shop(variant, training={"epochs": 1})
    stats = pipeline.CHECKPOINT.materialise(work)["stats"]
    assert stats["steps"] > 0
    assert (curves(work)[0]["generation"] == 0) is (variant == "image_only")


def test_frozen_vision_keeps_its_weights_and_encodes_each_photo_once(shop) -> None:
    work = shop(model={"vision": "frozen"}, training={"epochs": 1, "seed": 5})
    pipeline.CHECKPOINT.materialise(work)
    model, _ = checkpoint.load(work.variant_paths.checkpoint)
    kept = list(work.paths.cache.glob("features-*.npy"))
    assert len(kept) == 1
    stats = json.loads((work.variant_paths.checkpoint / checkpoint.CURVES).read_text())
    assert stats["trained_parameters"] == stats["parameters"] - sum(p.numel() for p in model.vision_parameters())


def test_a_folder_with_any_smolvlm_can_be_the_backbone(shop, tmp_path: Path) -> None:
    set_seed(1)
    model, processor = tiny.create(["Title: Wool cushion Category: Home", "Title: Oak lamp"])
    model.save_pretrained(tmp_path / "smolvlm")
    processor.save_pretrained(tmp_path / "smolvlm")
    work = shop(model={"backbone": str(tmp_path / "smolvlm")}, training={"epochs": 1, "learning_rate": 1e-9})
    pipeline.CHECKPOINT.materialise(work)
    trained, _ = checkpoint.load(work.variant_paths.checkpoint)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trained.backbone.state_dict()[name], value, atol=1e-6, rtol=1e-4)


def test_a_backbone_that_cannot_be_had_is_named_with_the_mend(shop, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    work = shop(model={"backbone": str(tmp_path / "empty")})
    with pytest.raises(BackboneError, match=r"empty.*local folder that holds one: config\.json"):
        pipeline.CHECKPOINT.materialise(work)


def test_two_processes_never_train_one_variant(shop) -> None:
    work = shop()
    work.variant_paths.root.mkdir(parents=True)
    with FileLock(work.variant_paths.root / "training.lock"), pytest.raises(CheckpointError, match="another process"):
        pipeline.CHECKPOINT.materialise(work)


def test_a_broken_contract_stops_training(shop) -> None:
    import duckdb

    work = shop()
    with duckdb.connect(work.paths.sequences) as connection:
        connection.execute("UPDATE items SET train_count = train_count + 1")
    with pytest.raises(ContractError, match="train_count"):
        pipeline.CHECKPOINT.materialise(work)
    assert not work.variant_paths.checkpoint.exists()


def test_damaged_weights_are_named(shop) -> None:
    work = shop(training={"epochs": 1})
    pipeline.CHECKPOINT.materialise(work)
    path = work.variant_paths.checkpoint / checkpoint.WEIGHTS
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(body)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        checkpoint.load(work.variant_paths.checkpoint)


def test_half_an_epochs_state_is_never_resumed(tmp_path: Path) -> None:
    for step, finished in ((5, True), (10, True), (15, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if finished:
            (tmp_path / f"checkpoint-{step}" / FINISHED).touch()
    assert last_finished(tmp_path) == str(tmp_path / "checkpoint-10")
    assert not (tmp_path / "checkpoint-15").exists()


TRAIN = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
from pixrec_core import pipeline
from tests.core.shop import open_shop
pipeline.CHECKPOINT.materialise(open_shop(Path(sys.argv[1]), training={"epochs": 3}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_been(shop, tmp_path: Path, how: signal.Signals) -> None:
    work = shop(training={"epochs": 3})
    killed = subprocess.Popen([sys.executable, "-c", TRAIN, str(tmp_path)], cwd=Path.cwd(), env=os.environ)
    deadline = time.monotonic() + 120
    while not list(work.variant_paths.training.glob(f"*/checkpoint-*/{FINISHED}")):
        assert killed.poll() is None, "training ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(how)
    assert killed.wait(60) != 0
    assert not work.variant_paths.checkpoint.exists()

    pipeline.CHECKPOINT.materialise(work)
    resumed_curves, resumed_weights = curves(work), weights(work)
    pipeline.CHECKPOINT.materialise(work)
    assert resumed_curves == curves(work)
    assert all(torch.equal(resumed_weights[name], value) for name, value in weights(work).items())
