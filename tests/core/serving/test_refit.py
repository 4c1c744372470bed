"""What serves, fitted on all interactions: what changes, what stays as measured, kills."""

import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pixrec_core import files, pipeline, recommenders
from pixrec_core.data.sequences import read_all_histories, read_items, read_sequences, write_all_as_training
from pixrec_core.errors import SettingsError
from pixrec_core.models import checkpoint
from pixrec_core.paths import BLEND, DatasetPaths
from pixrec_core.recommenders import _sequence_training, sasrec
from pixrec_core.recommenders.base import TrainData
from pixrec_core.recommenders.blend import Blend
from pixrec_core.schemas import ITEM, ITEMS, TEST, TIMESTAMPS, TRAIN, TRAIN_COUNT, VALIDATION
from pixrec_core.serving import Recommender, refresh
from pixrec_core.serving.promotion import read_promotion
from pixrec_core.stages import Work
from pixrec_core.training import trainer
from tests.core import shop as shops
from tests.forks import exit_code

VARIANTS = ("text_only", "collaborative")
BASELINES = ("ease", "popularity", "sasrec")
SECTIONS = {
    "source": {"users": 320, "items": 60},
    "model": {"user_encoder": "items"},
    "training": {"epochs": 2, "learning_rate": 0.01, "batch_size": 64},
}


def open_work(folder: Path) -> Work:
    work = shops.open_shop(folder, VARIANTS[0], **SECTIONS)
    return Work(work.settings.model_copy(update={"variants": VARIANTS}), "shop", VARIANTS[0])


@pytest.fixture(scope="module", autouse=True)
def _small(tmp_path_factory):
    """Few epochs and baselines. Here, as the forked processes of this module inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recommenders, "baseline_names", lambda: list(BASELINES))
        patch.setattr(_sequence_training, "EPOCHS", 3)
        yield


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Work:
    """A shop with trained and promoted methods, before the refit; tests must not change it."""
    work = open_work(tmp_path_factory.mktemp("measured"))
    for variant in VARIANTS:
        for stage in (pipeline.CHECKPOINT, *shops.AFTER_TRAINING):
            stage.materialise(work.with_variant(variant))
    for stage in (pipeline.BASELINES, pipeline.BLEND, pipeline.PROMOTED):
        stage.materialise(work)
    return work


def copy(work: Work, folder: Path) -> Work:
    shutil.copytree(work.settings.root, folder, dirs_exist_ok=True)
    return open_work(folder)


@pytest.fixture(scope="module")
def refitted(measured, tmp_path_factory) -> Work:
    work = copy(measured, tmp_path_factory.mktemp("refitted"))
    assert not pipeline.REFIT.is_current(work)
    assert pipeline.REFIT.materialise(work)["stats"]["refitted"]
    return work


def weights(work: Work) -> dict[str, str]:
    return read_promotion(work.paths.promoted).checkpoint_sha256


def test_a_copy_of_the_sequences_has_every_interaction_in_training(measured, tmp_path):
    target = DatasetPaths(tmp_path)
    write_all_as_training(measured.paths, target.sequences)
    everything = read_all_histories(measured.paths)
    train = read_sequences(target, TRAIN)
    assert train.select("user", ITEMS, TIMESTAMPS).equals(everything)
    assert read_sequences(target, VALIDATION).is_empty()
    assert read_sequences(target, TEST).is_empty()
    items, counts = read_items(target), everything[ITEMS].explode().value_counts()
    assert items[ITEM].equals(read_items(measured.paths)[ITEM])
    assert dict(items.select(ITEM, TRAIN_COUNT).rows()) == dict(counts.rows())
    assert read_items(measured.paths)[TRAIN_COUNT].sum() < len(everything[ITEMS].explode()) == items[TRAIN_COUNT].sum()


def test_the_manifest_says_what_was_refitted_and_keeps_the_measured_figures(measured, refitted):
    old, new = read_promotion(measured.paths.promoted), read_promotion(refitted.paths.promoted)
    assert (old.method, old.refitted_at) == (BLEND, {})
    assert (new.number, new.measured, new.trained_at) == (old.number + 1, old.number, old.trained_at)
    assert (new.method, new.methods, new.score) == (old.method, old.methods, old.score)
    assert set(Blend.load(measured.paths.blend.root).methods) == {*VARIANTS, *BASELINES}
    assert set(new.refitted_at) == {*VARIANTS, *BASELINES}
    assert not refitted.paths.refit.exists()


def test_the_blend_keeps_its_weights(measured, refitted):
    old, new = (Blend.load(read_copies(work).blend.root) for work in (measured, refitted))
    assert old.learned.weights.tolist() == new.learned.weights.tolist()
    assert new.items.counts.sum() > old.items.counts.sum()


def read_copies(work: Work) -> DatasetPaths:
    return work.paths.promoted.copies(read_promotion(work.paths.promoted).number)


def test_towers_are_trained_on_all_interactions_for_the_best_number_of_epochs(measured, refitted):
    histories = read_all_histories(measured.paths)[ITEMS].list.len()
    for name in VARIANTS:
        folder = read_copies(refitted).variant(name).checkpoint
        assert weights(refitted)[name] != weights(measured)[name]
        record, before = (
            files.read_json(read_copies(work).variant(name).checkpoint / checkpoint.CURVES)
            for work in (refitted, measured)
        )
        assert record["epochs"] == before["epochs"]
        refit = record["refit"]
        assert refit["examples"] == (histories - 1).sum() > before["examples"]
        assert len(refit["epochs"]) == before["best_epoch"]
        assert not any("ndcg@10" in epoch for epoch in refit["epochs"])
        card = (folder / checkpoint.CARD).read_text()
        assert "fitted again on all interactions" in card
        assert "They were not measured: the figures are of the training before." in card
        assert f"{before['epochs'][0]['ndcg@10']:.4g}" in card


def test_a_network_is_trained_on_all_interactions_for_the_chosen_epochs(measured, refitted):
    old, new = (Recommender.load(work.paths.promoted.root).method("sasrec") for work in (measured, refitted))
    assert new.chosen == old.chosen
    assert old.chosen["epochs"] in (1, 2, 3)
    expected = sasrec.fit(replace(TrainData.read_all(measured.paths), chosen=old.chosen))
    assert len(expected.known) >= len(old.known)
    for name, values in expected.weights.items():
        np.testing.assert_array_equal(new.weights[name], values)


def test_what_serves_answers(refitted):
    recommender = Recommender.load(refitted.paths.promoted.root)
    users = read_all_histories(refitted.paths)["user"].to_list()[:5]
    assert all(len(recommender.for_user(user, 5)) == 5 for user in users)
    assert recommender.for_text("red shirt", 3)


def test_a_refit_is_current_until_something_else_is_promoted(refitted, tmp_path):
    work = copy(refitted, tmp_path)
    assert pipeline.REFIT.is_current(work)
    pipeline.refresh(work)
    assert read_promotion(work.paths.promoted).refitted_at.keys() >= {"ease"}
    assert pipeline.REFIT.is_current(work)
    pipeline.PROMOTED.materialise(work)
    assert read_promotion(work.paths.promoted).refitted_at == {}
    assert not pipeline.REFIT.is_current(work)


def test_a_rollback_needs_no_refit(refitted, tmp_path):
    work = copy(refitted, tmp_path)
    pipeline.PROMOTED.materialise(work)
    pipeline.REFIT.materialise(work)
    number = read_promotion(work.paths.promoted).number
    pipeline.rollback(work, read_promotion(refitted.paths.promoted).number)
    assert pipeline.PROMOTED.is_current(work)
    assert pipeline.REFIT.is_current(work)
    assert not pipeline.serves_what_was_measured(work)
    stats = pipeline.REFIT.materialise(work)["stats"]
    assert stats == {"refitted": False, "summary": f"none: promotion {number - 2}, an earlier one, serves"}


def test_a_promotion_after_the_folder_was_removed_is_refitted(refitted, tmp_path):
    """Its number is that of the first promotion again."""
    work = copy(refitted, tmp_path)
    assert pipeline.serves_what_was_measured(work)
    shutil.rmtree(work.paths.promoted.root)
    assert not pipeline.serves_what_was_measured(work)
    time.sleep(1.1)  # the time of a promotion is in seconds
    pipeline.PROMOTED.materialise(work)
    assert read_promotion(work.paths.promoted).measured == 1
    assert not pipeline.REFIT.is_current(work)
    assert pipeline.REFIT.materialise(work)["stats"]["refitted"]


def die(*_, **__) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refit_and_die(folder: Path, where: str) -> None:
    if where == "epoch":
        saved = trainer._FinishedMark.on_save

        def on_save(self, args, state, control, **others) -> None:
            saved(self, args, state, control, **others)
            die()

        trainer._FinishedMark.on_save = on_save
    elif where == "checkpoint":
        checkpoint.save = die
    else:
        refresh.write_promotion = die
    pipeline.REFIT.materialise(open_work(folder))


@pytest.mark.parametrize("where", ["epoch", "checkpoint", "promotion"])
def test_a_killed_refit_leaves_what_serves_and_ends_the_same(measured, refitted, tmp_path, where):
    work = copy(measured, tmp_path)
    manifest = work.paths.promoted.manifest.read_bytes()
    assert exit_code(refit_and_die, tmp_path, where) == -signal.SIGKILL
    assert work.paths.promoted.manifest.read_bytes() == manifest
    assert pipeline.REFIT.stamp(work) is None
    pipeline.REFIT.materialise(work)
    assert weights(work) == weights(refitted)
    assert not work.paths.refit.exists()


def test_a_refused_promotion_is_not_refitted(measured, tmp_path):
    work = copy(measured, tmp_path)
    stamp = files.read_json(pipeline.PROMOTED.stamp_path(work))
    files.write_json(pipeline.PROMOTED.stamp_path(work), stamp | {"stats": stamp["stats"] | {"promoted": False}})
    manifest = work.paths.promoted.manifest.read_bytes()
    assert not pipeline.REFIT.materialise(work)["stats"]["refitted"]
    assert work.paths.promoted.manifest.read_bytes() == manifest


def test_the_setting_turns_it_off(measured, tmp_path, monkeypatch):
    monkeypatch.setenv("PIXREC_PROMOTION__REFIT", "false")
    work = copy(measured, tmp_path)
    pipeline.PROMOTED.materialise(work)
    assert pipeline.REFIT.materialise(work)["stats"] == {
        "refitted": False,
        "summary": "off: promotion.refit is false",
    }
    assert read_promotion(work.paths.promoted).refitted_at == {}


def test_other_settings_of_a_tower_are_refused(measured, tmp_path, monkeypatch):
    monkeypatch.setenv("PIXREC_TRAINING__LEARNING_RATE", "0.5")
    work = copy(measured, tmp_path)
    with pytest.raises(SettingsError, match=r"learning_rate is 0\.5, but \w+ was trained with 0\.01"):
        pipeline.REFIT.materialise(work)
