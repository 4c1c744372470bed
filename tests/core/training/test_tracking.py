"""Trainings logged to a real MLflow database: content of a run, resuming, and outages."""

import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from pixrec_core import files, pipeline
from pixrec_core.errors import SettingsError
from pixrec_core.models import checkpoint
from pixrec_core.settings import TrackingSettings
from pixrec_core.stages import Work
from pixrec_core.training import tracking

mlflow = pytest.importorskip("mlflow", reason="install .[tracking]")
pytestmark = [
    pytest.mark.slow,  # MLflow takes seconds to import and to create its database
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),  # about MLflow's tables
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}")
    yield client
    client._tracking_client.store._dispose_engine()


@pytest.fixture
def tracked(shop, store, request):
    """Opens a shop whose trainings are runs of an experiment named after the test."""
    tracking = TrackingSettings(uri=store.tracking_uri, experiment=request.node.name)

    def of(**training: Any) -> Work:
        work = shop("text_only", training=training)
        return replace(work, settings=work.settings.model_copy(update={"tracking": tracking}))

    return of


def runs(store: Any, work: Work) -> list[Any]:
    experiment = store.get_experiment_by_name(work.settings.tracking.experiment)
    return list(store.search_runs([experiment.experiment_id]))


def epochs(store: Any, run: Any, metric: str) -> list[tuple[int, float]]:
    """Every point of a curve: epoch and value."""
    return [(point.step, point.value) for point in store.get_metric_history(run.info.run_id, metric)]


def record(work: Work) -> dict[str, Any]:
    return dict(files.read_json(work.variant_paths.checkpoint / checkpoint.CURVES))


def test_a_run_has_settings_curves_data_versions_and_the_model_card(tracked, store) -> None:
    work = tracked()
    stats = pipeline.CHECKPOINT.materialise(work)["stats"]
    (run,) = runs(store, work)
    assert (run.info.run_name, run.info.status) == ("shop|text_only", "FINISHED")
    assert run.data.params["training.epochs"] == "2"
    assert run.data.params["model.lora.rank"] == "16"
    assert run.data.tags["dataset"] == "shop"
    assert run.data.tags["variant"] == "text_only"
    assert run.data.tags["data_version.sequences"] == pipeline.SEQUENCES.stamp(work)["data_version"]
    for name in ("loss", "generation", "recall@10", "ndcg@10", "seconds"):
        curve = [(epoch["epoch"], epoch[name]) for epoch in record(work)["epochs"]]
        assert epochs(store, run, name.replace("@", "_at_")) == curve
    assert run.data.metrics["best_epoch"] == stats["best_epoch"]
    assert run.data.metrics["validation_ndcg_at_10"] == stats["validation_ndcg@10"]
    artifacts = work.settings.data_dir / ".mlflow" / run.info.run_id / "artifacts"
    card = work.variant_paths.checkpoint / checkpoint.CARD
    assert (artifacts / checkpoint.CARD).read_bytes() == card.read_bytes()


def test_an_evaluation_is_a_run_and_a_training_has_its_test_metrics(tracked, store, caplog) -> None:
    work = tracked(epochs=1)
    stamp = pipeline.CHECKPOINT.materialise(work)
    estimate = {"NDCG@10": {"value": 0.25, "low": 0.2, "high": 0.3}}
    methods = {"ease": estimate, "text_only": estimate}
    metrics = {"protocols": {name: {"methods": methods} for name in ("seen_allowed", "seen_filtered")}}
    tracking.log_test_metrics(work, metrics, {"text_only": stamp["fingerprint"], "multimodal": "of no run"})
    by_name = {run.info.run_name: run for run in runs(store, work)}
    evaluation, training = by_name["shop|evaluation"], by_name["shop|text_only"]
    assert (evaluation.info.status, training.info.status) == ("FINISHED", "FINISHED")
    assert evaluation.data.metrics == {
        f"{method}/{protocol}/NDCG_at_10": 0.25
        for method in ("ease", "text_only") for protocol in ("seen_allowed", "seen_filtered")
    }  # fmt: skip
    assert training.data.metrics["test/seen_allowed/NDCG_at_10"] == 0.25
    assert training.data.metrics["best_epoch"] == 1
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


class CrashError(Exception):
    """Ends a training as a crash would."""


def test_a_resumed_training_continues_its_run_and_logs_no_epoch_twice(tracked, store, monkeypatch) -> None:
    work = tracked()

    def crash(*_) -> None:
        raise CrashError

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", crash)
        with pytest.raises(CrashError):
            pipeline.CHECKPOINT.materialise(work)
    (crashed,) = runs(store, work)
    assert crashed.info.status == "FAILED"
    state = max(work.variant_paths.training.glob("*/checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    files.remove(state)  # as if killed between logging the last epoch and saving it
    pipeline.CHECKPOINT.materialise(work)
    (run,) = runs(store, work)
    assert (run.info.run_id, run.info.status) == (crashed.info.run_id, "FINISHED")
    assert [epoch for epoch, _ in epochs(store, run, "loss")] == [1, 2]
    pipeline.CHECKPOINT.materialise(work)
    assert len(runs(store, work)) == 2, "a finished run is not continued"


def test_a_trial_of_a_search_is_a_run_with_its_settings(tracked, store) -> None:
    pytest.importorskip("optuna", reason="install .[tune]")
    work = tracked(epochs=1)
    (trial,) = pipeline.tune(work, 1e-6)["trials"]
    (run,) = runs(store, work)
    assert (run.info.run_name, run.info.status) == ("shop|text_only", "FINISHED")
    assert (run.data.tags["stage"], run.data.params["training.epochs"]) == ("tune", "1")
    assert run.data.metrics["validation_ndcg_at_10"] == trial["validation_ndcg@10"]


def test_an_outage_does_not_stop_training_and_missing_epochs_are_sent_later(
    tracked, store, monkeypatch, caplog
) -> None:
    work = tracked()
    send, seen = mlflow.MlflowClient.log_batch, []

    def failing(self, run_id: str, metrics=(), **rest) -> None:
        seen.extend(metrics)
        if metrics and metrics[0].step == 1 and sum(each.key == "loss" for each in seen) == 1:
            raise mlflow.exceptions.MlflowException("http://me:secret@host/ is down")
        send(self, run_id, metrics=metrics, **rest)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", failing)
    pipeline.CHECKPOINT.materialise(work)
    (run,) = runs(store, work)
    assert run.info.status == "FINISHED"
    assert sorted(epoch for epoch, _ in epochs(store, run, "loss")) == [1, 2]
    assert "Could not log to MLflow, but training continues: http://host/ is down" in caplog.text


def test_the_error_for_an_unreachable_server_hides_its_password(tracked, monkeypatch, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    work = tracked()
    unreachable = TrackingSettings(uri="http://me:secret@127.0.0.1:9/mlflow?token=secret")
    work = replace(work, settings=work.settings.model_copy(update={"tracking": unreachable}))
    with pytest.raises(SettingsError, match=r"tracking\.uri = 'http://127\.0\.0\.1:9/mlflow'") as raised:
        pipeline.CHECKPOINT.materialise(work)
    assert "secret" not in str(raised.value) + caplog.text
    assert raised.value.__suppress_context__


def test_without_mlflow_the_error_says_how_to_install_it(tracked, monkeypatch) -> None:
    work = tracked()
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(SettingsError, match=r"pip install '\.\[tracking\]'"):
        pipeline.CHECKPOINT.materialise(work)
    assert not work.variant_paths.checkpoint.exists()
