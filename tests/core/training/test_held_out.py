"""With either split, training reads nothing that is held out, and all later stages work."""

import json

import duckdb
import pytest

from pixrec_core import pipeline, prompts, schemas
from pixrec_core.data.sequences import read_cuts, read_items, read_sequences
from pixrec_core.models.backbones import tiny
from pixrec_core.models.negatives import Negatives
from pixrec_core.models.tower_inputs import TowerInputs
from pixrec_core.models.windows import TrainingWindows
from pixrec_core.training import _training_texts
from tests.core.shop import AFTER_TRAINING

SPLITS = {"leave_one_out": {}, "time": {"split": "time"}}


@pytest.fixture(params=SPLITS)
def work(request, shop):
    return shop("text_only", sequences=SPLITS[request.param], training={"epochs": 1})


def bought(work, condition: str) -> set[str]:
    """Items of the interactions that meet a condition."""
    with duckdb.connect(work.paths.sequences, read_only=True) as connection:
        return {
            item for (item,) in connection.sql(f"SELECT DISTINCT item FROM interactions WHERE {condition}").fetchall()
        }


def test_texts_and_negatives_come_from_training_only(work):
    trained = bought(work, "split = 'train'")
    assert bought(work, "true") - trained, "the shop needs cold items for this test"
    catalogue = {row["item"]: row for row in read_items(work.paths).to_dicts()}

    texts = list(_training_texts([work.variant_paths]))
    assert sorted(texts) == sorted(prompts.item_text(catalogue[item]) for item in trained)

    backbone, processor = tiny.create(texts)
    inputs = TowerInputs.load(work.variant_paths, backbone, processor, 8)
    sequences = read_sequences(work.paths, schemas.TRAIN)
    windows = TrainingWindows(inputs.numbers(sequences["items"]), length=4, seed=0)
    negatives = Negatives(read_items(work.paths)[schemas.TRAIN_COUNT].to_numpy(), num_sampled=10_000, seed=0)
    for epoch in range(3):
        windows.set_epoch(epoch)
        batch = inputs.collator(negatives=negatives)([windows[n] for n in range(len(windows))])
        assert {inputs.items[number] for number in batch["item_numbers"].tolist()} == trained


def test_training_sequences_end_before_held_out_items(work):
    held_out = {split: read_sequences(work.paths, split) for split in (schemas.VALIDATION, schemas.TEST)}
    train = read_sequences(work.paths, schemas.TRAIN)
    cuts = read_cuts(work.paths)
    if cuts:
        assert max(train["timestamps"].explode()) < cuts["validation"]
        assert cuts["validation"] <= min(held_out["validation"]["timestamps"].list.last())
        assert max(held_out["validation"]["timestamps"].list.last()) < cuts["test"]
        assert cuts["test"] <= min(held_out["test"]["timestamps"].list.last())
    else:
        lengths = [frame["items"].list.len().to_list() for frame in (train, *held_out.values())]
        assert all(b == a + 1 and c == a + 2 for a, b, c in zip(*lengths, strict=True))


@pytest.mark.slow
def test_the_time_split_works_from_training_to_the_report(shop):
    for variant in ("multimodal", "collaborative", "text_only"):
        work = shop(variant, sequences=SPLITS["time"], training={"epochs": 1})
        for stage in (pipeline.CHECKPOINT, *AFTER_TRAINING):
            stage.materialise(work)
    stages = (
        pipeline.BASELINES,
        pipeline.BLEND,
        pipeline.PROMOTED,
        pipeline.EVALUATION,
        pipeline.REPORT,
        pipeline.REFIT,
    )
    for stage in stages:
        stage.materialise(work)
    users = read_sequences(work.paths, schemas.TEST)["user"]
    metrics = json.loads(work.paths.metrics.read_text())
    methods = metrics["protocols"]["seen_allowed"]["methods"]
    assert metrics["users"] == len(users) > 0
    assert {"multimodal", "collaborative", "text_only", "popularity"} <= set(methods)
    assert (work.paths.report / "index.html").exists()
