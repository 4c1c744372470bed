"""A joint training on two small shops, and a second training that starts from it."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pixrec_core import files, pipeline, prompts, schemas, training
from pixrec_core.data.sequences import read_items, read_sequences
from pixrec_core.errors import CheckpointError
from pixrec_core.models import checkpoint
from pixrec_core.models.windows import TrainingWindows
from pixrec_core.settings import Settings
from pixrec_core.stages import Work
from pixrec_core.training import prepared
from pixrec_core.training.validation import Validation
from tests.core.shop import untrained

SHOPS = {"lamps": 40, "hats": 60}  # users; the generator's seed is the same, so that both have the same ids


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of two shops that share ids of items and users."""
    folder = tmp_path_factory.mktemp("shops")
    for name in SHOPS:
        for stage in pipeline.DATA:
            stage.materialise(Work(settings(folder), name))
    return folder


def settings(folder: Path, variant_training: dict | None = None, **joint: dict) -> Settings:
    model = {"embedding_dim": 16, "item_tokens": 8}
    short = {"epochs": 1, "batch_size": 16, "max_history_len": 4}
    datasets = {
        name: {
            "source": {"kind": "sample", "users": users, "items": 40},
            "start_from": "both",
            "training": short | (variant_training or {}),
        }
        for name, users in SHOPS.items()
    }
    joint = {"datasets": list(SHOPS), "model": model, "training": short | joint}
    return Settings(root=folder, data_dir=folder / "data", datasets=datasets, joint={"both": joint})


@pytest.fixture
def shops(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(scope="module")
def trained(built: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, dict]:
    """The shops with a joint training of the multimodal variant, its stamp, and the record of its epoch."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(built, folder, dirs_exist_ok=True)
    reported = []
    stamp = pipeline.JOINT_CHECKPOINT.materialise(joint_work(folder, "multimodal"), on_epoch=reported.append)
    (epoch,) = reported
    return folder, stamp, epoch


@pytest.fixture
def trained_shops(trained: tuple[Path, dict, dict], tmp_path: Path) -> Path:
    shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


def joint_work(folder: Path, variant: str = "text_only", **joint: dict) -> Work:
    return Work(settings(folder, **joint), "both", variant)


def record(work: Work) -> dict:
    return files.read_json(work.variant_paths.checkpoint / checkpoint.CURVES)


def test_the_joint_checkpoint_is_validated_by_the_mean_over_datasets(trained: tuple[Path, dict, dict]) -> None:
    folder, stamp, epoch = trained
    work, stats = joint_work(folder, "multimodal"), stamp["stats"]
    for metric in ("recall@10", "ndcg@10"):
        assert epoch[metric] == pytest.approx((epoch[f"lamps/{metric}"] + epoch[f"hats/{metric}"]) / 2)
    data = stats["data"]
    for name in SHOPS:
        bought = read_sequences(work.with_dataset(name).paths, schemas.TRAIN)[schemas.ITEMS]
        assert data[name]["users"] == bought.len()
        assert data[name]["examples"] == sum(len(items) - 1 for items in bought)
        assert data[name]["items"] == read_items(work.with_dataset(name).paths).height
    assert stats["examples"] == data["lamps"]["examples"] + data["hats"]["examples"]
    card = (work.variant_paths.checkpoint / checkpoint.CARD).read_text()
    assert all(f"| {name} | {data[name]['users']} |" in card for name in SHOPS)


def test_only_training_sequences_are_learnt_and_item_numbers_belong_to_their_dataset(shops: Path, monkeypatch) -> None:
    work = joint_work(shops)
    learnt, validated = [], []

    class RecordedWindows(TrainingWindows):
        def __init__(self, sequences, *rest, **options) -> None:
            learnt.append(sequences)
            super().__init__(sequences, *rest, **options)

    monkeypatch.setattr(prepared, "TrainingWindows", RecordedWindows)
    monkeypatch.setattr(
        Validation, "__call__", lambda self, _: validated.append(self) or {"recall@10": 0.0, "ndcg@10": 0.0}
    )
    pipeline.JOINT_CHECKPOINT.materialise(work)
    assert len(learnt) == len(validated) == 2
    ids = [set(), set()]
    for number, name in enumerate(SHOPS):
        items = read_items(work.with_dataset(name).paths)[schemas.ITEM].to_list()
        ids[number] |= set(items)
        bought = read_sequences(work.with_dataset(name).paths, schemas.TRAIN)[schemas.ITEMS].to_list()
        assert [[items[n] for n in sequence] for sequence in learnt[number]] == bought
    assert ids[0] & ids[1], "the same id in two shops means two items"


def test_the_tokenizer_learns_from_the_training_texts_of_all_datasets_only(shops: Path, monkeypatch) -> None:
    work = joint_work(shops)
    seen = []
    monkeypatch.setattr(training, "create_backbone", lambda *given: seen.extend(given[2]()) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pipeline.JOINT_CHECKPOINT.materialise(work)
    rows = [row for name in SHOPS for row in read_items(work.with_dataset(name).paths).to_dicts()]
    warm = [row for row in rows if row[schemas.TRAIN_COUNT] > 0]
    assert len(warm) < len(rows), "some items are held out"
    assert seen == [prompts.item_text(row) for row in warm]


def test_the_second_training_starts_from_weights_tokenizer_and_processor_of_the_first(trained_shops: Path) -> None:
    work = Work(settings(trained_shops, {"learning_rate": 1e-12, "temperature": 0.5}), "hats", "multimodal")
    pipeline.CHECKPOINT.materialise(work)
    before, after = work.with_dataset("both").variant_paths.checkpoint, work.variant_paths.checkpoint
    started = load_file(before / checkpoint.WEIGHTS)
    for name, value in load_file(after / checkpoint.WEIGHTS).items():
        torch.testing.assert_close(value, started[name], atol=1e-6, rtol=1e-4)
    for name in ("tokenizer.json", "preprocessor_config.json"):
        assert (after / name).read_bytes() == (before / name).read_bytes()
    model, _ = checkpoint.load(after)
    assert model.config.tau == 0.5, "the objective is that of the second training"
    weights = record(work.with_dataset("both"))["weights_sha256"]
    assert record(work)["started_from"] == {"datasets": ["hats", "lamps"], "weights_sha256": weights}
    assert set(record(work)["data"]) == {"hats"}
    for stage in (pipeline.ITEM_VECTORS, pipeline.ITEM_INDEX, pipeline.RANKING):
        stage.materialise(work)
    assert work.variant_paths.ranking.exists()


def test_a_damaged_joint_checkpoint_is_refused(trained_shops: Path) -> None:
    work = joint_work(trained_shops, "multimodal")
    path = work.variant_paths.checkpoint / checkpoint.WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        pipeline.CHECKPOINT.materialise(work.with_dataset("hats"))


def test_another_joint_training_makes_its_successors_stale(trained_shops: Path) -> None:
    hats = joint_work(trained_shops, "multimodal").with_dataset("hats")
    replace(pipeline.CHECKPOINT, run=untrained, resumes=False).materialise(hats)
    assert pipeline.CHECKPOINT.is_current(hats)
    again = joint_work(trained_shops, "multimodal", seed=7)
    assert not pipeline.JOINT_CHECKPOINT.is_current(again)
    pipeline.JOINT_CHECKPOINT.materialise(again)
    assert not pipeline.CHECKPOINT.is_current(again.with_dataset("hats"))
