"""A search for settings: what it varies, its proposals, and how it goes on after a kill."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from pixrec_core import files, pipeline
from pixrec_core.errors import ArtefactError, BusyError, SettingsError
from pixrec_core.settings import DatasetSettings
from pixrec_core.training import trainer
from pixrec_core.training.search import SCORE, TRIALS, changed_settings, propose, search, search_space, with_values
from tests.core.shop import open_shop
from tests.forks import exit_code

pytest.importorskip("optuna", reason="install .[tune]")

MODEL = {"user_encoder": "items", "embedding_dim": 16}
TRAINING = {"epochs": 3, "batch_size": 64}
ALWAYS = {"training.learning_rate", "training.temperature", "training.batch_size"}


def dataset(**sections: Any) -> DatasetSettings:
    return DatasetSettings(source={"kind": "sample"}, **sections)


@pytest.mark.parametrize(
    ("variant", "sections", "varied"),
    [
        ("text_only", {}, {"model.embedding_dim", "model.user_pooling"}),
        ("multimodal", {}, {"model.embedding_dim", "model.user_pooling", "model.photo_dropout"}),
        (
            "collaborative",
            {},
            {"model.embedding_dim", "model.user_pooling", "model.photo_dropout", "model.item_id_dropout"},
        ),
        ("multimodal", {"model": {"user_encoder": "tokens"}}, {"model.embedding_dim", "training.epochs"}),
        ("multimodal", {"start_from": "all", "model": {"user_encoder": "tokens"}}, {"training.epochs"}),
    ],
)
def test_only_settings_that_the_training_reads_are_varied(variant, sections, varied) -> None:
    assert set(search_space(dataset(**sections), variant)) == ALWAYS | varied


@pytest.mark.parametrize("rate", [1.5e-3, 1.2345e-4, 1.0])
def test_values_have_three_digits_and_stay_in_the_space(rate) -> None:
    space = search_space(dataset(training={"learning_rate": rate}), "collaborative")
    trials: list[dict] = []
    for n in range(30):
        values = propose(space, trials, seed=0)  # fails if an earlier trial lies outside of the space
        found = values["training.learning_rate"]
        assert found == float(f"{found:.3g}")
        assert rate / 4.1 < found < rate * 4.1
        trials.append({"values": values, SCORE: n / 30})
    assert len({str(trial["values"]) for trial in trials}) == 30


def by_rate(values: dict, _run: str) -> dict:
    """A training whose result depends on one setting alone."""
    return {
        SCORE: -abs(values["training.learning_rate"] - 4e-3),
        "best_epoch": 1,
        "data": {"a": {"validation_users": 7}},
    }


def run_search(
    folder: Path, trials: int, settings: DatasetSettings | None = None, study: str = "s", result: Any = by_rate
) -> dict:
    """Search until a number of trials have been added to those in the folder."""
    left = iter([*range(trials), None])

    def train(values: dict, run: str) -> dict:
        if next(left) is None:
            raise KeyboardInterrupt
        return dict(result(values, run))

    settings = settings or dataset()
    with pytest.raises(KeyboardInterrupt):
        search(settings, search_space(settings, "multimodal"), folder, study, 60, train)
    return dict(files.read_json(folder / TRIALS))


def test_an_interrupted_search_tries_the_same_settings_as_a_whole_one(tmp_path) -> None:
    whole = run_search(tmp_path / "whole", 25)
    run_search(tmp_path / "parts", 4)
    run_search(tmp_path / "parts", 11)
    assert run_search(tmp_path / "parts", 10) == whole
    first = whole["trials"][0]["values"]
    assert (first["training.learning_rate"], first["model.photo_dropout"]) == (1.5e-3, 0.3)
    assert whole["validation_users"] == 7
    best = changed_settings(whole["trials"])
    assert abs(best["training"]["learning_rate"] - 4e-3) < 1e-3, "25 trials come nearer than the default"


@pytest.mark.parametrize("error", [
    MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), SettingsError("no memory of a number"),
])  # fmt: skip
def test_a_search_continues_after_a_training_that_diverges_or_does_not_fit_into_memory(tmp_path, error) -> None:
    def failing(values: dict, run: str) -> dict:
        if values["training.learning_rate"] != 1.5e-3:
            raise error
        return by_rate(values, run)

    first, *others = run_search(tmp_path, 4, result=failing)["trials"]
    assert [trial[SCORE] for trial in others] == [0, 0, 0]
    assert len({str(trial["values"]) for trial in others}) == 3, "it does not try the same again"
    assert "memory" in others[0]["error"].lower()
    assert "error" not in first


def test_a_search_ends_with_another_error(tmp_path) -> None:
    def fail(values: dict, run: str) -> dict:
        raise RuntimeError("shapes differ")

    run_search(tmp_path, 1)
    settings = dataset()
    with pytest.raises(RuntimeError, match="shapes differ"):
        search(settings, search_space(settings, "multimodal"), tmp_path, "s", 60, fail)
    assert len(files.read_json(tmp_path / TRIALS)["trials"]) == 1


def test_another_study_starts_again(tmp_path) -> None:
    run_search(tmp_path, 2)
    other = dataset(training={"learning_rate": 4e-3})
    found = run_search(tmp_path, 3, other, study="other")["trials"]
    assert [len(found), found[0]["values"]["training.learning_rate"]] == [3, 4e-3]
    assert changed_settings(found) == {}, "nothing is better than the optimum"


def tune(folder: Path, minutes: float = 1e-6) -> dict:
    return dict(pipeline.tune(open_shop(folder, model=MODEL, training=TRAINING), minutes))


def tune_and_die(folder: Path) -> None:
    """Kill this process in the second epoch of a trial."""

    def die(_self: object, _args: object, state: Any, *_: object, **__: object) -> None:
        if state.epoch > 1:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer._Progress.on_step_end = die
    tune(folder)


@pytest.mark.slow
def test_a_killed_search_resumes_its_training_and_changes_nothing_else(opened: Path, tmp_path, monkeypatch) -> None:
    for name in ("whole", "killed"):
        shutil.copytree(opened, tmp_path / name)
    tune(tmp_path / "whole")
    whole = tune(tmp_path / "whole")
    tune(tmp_path / "killed")
    assert exit_code(tune_and_die, tmp_path / "killed") == -signal.SIGKILL
    work = open_shop(tmp_path / "killed", model=MODEL, training=TRAINING)
    (state,) = work.variant_paths.tune.glob("trial/training/*/checkpoint-*")
    resumed = []

    def record(self: Any, *_: object, **named: Any) -> None:
        resumed.append(named["resume_from_checkpoint"])
        return fit(self, **named)

    fit = trainer.DualTowerTrainer.train
    monkeypatch.setattr(trainer.DualTowerTrainer, "train", record)
    assert tune(tmp_path / "killed") == whole
    assert resumed == [str(state)], "the first epoch is not trained again"
    assert [path.name for path in work.variant_paths.root.iterdir() if path.name != "stamps"] == ["tune"]
    assert [path.name for path in work.variant_paths.tune.iterdir()] == [TRIALS]
    assert tune(tmp_path / "killed", minutes=0) == whole, "without time nothing is trained"


@pytest.mark.slow
def test_settings_of_a_trial_give_its_result_in_a_training_of_the_pipeline(shop) -> None:
    work = shop(model=MODEL, training=TRAINING)
    pipeline.tune(work, 1e-6)
    trial = pipeline.tune(work, 1e-6)["trials"][1]
    found = with_values(work.dataset_settings, trial["values"])
    again = shop(model=found.model.model_dump(), training=found.training.model_dump())
    assert pipeline.CHECKPOINT.materialise(again)["stats"][SCORE] == trial[SCORE]


def test_a_search_stops_if_the_sequences_change(shop, monkeypatch) -> None:
    work = shop(model=MODEL, training=TRAINING)
    real = pipeline._train

    def train_and_change(*given: Any, **named: Any) -> dict:
        stats = real(*given, **named)
        stamp = pipeline.SEQUENCES.stamp_path(work)
        files.write_json(stamp, files.read_json(stamp) | {"data_version": "other"})
        return dict(stats)

    monkeypatch.setattr(pipeline, "_train", train_and_change)
    with pytest.raises(ArtefactError, match="Inputs of the training of shop have changed"):
        pipeline.tune(work, 60)
    assert len(files.read_json(work.variant_paths.tune / TRIALS)["trials"]) == 1


def test_one_variant_has_one_search_at_a_time(shop) -> None:
    work = shop(model=MODEL, training=TRAINING)
    with pipeline.CHECKPOINT.exclusive(work):
        assert "trials" in pipeline.tune(work, 0), "a training of the pipeline may run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "_train", lambda *_, **__: pipeline.tune(work, 0))
        with pytest.raises(BusyError, match=r"Cannot run `tune` for shop\|multimodal: another process"):
            pipeline.tune(work, 1)
