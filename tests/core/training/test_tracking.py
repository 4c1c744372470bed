"""Trainings told to MLflow: read back from a real store, by its own client."""

import os
import sys

import pytest

from pixrec_core import files, pipeline
from pixrec_core.errors import SettingsError
from pixrec_core.models import checkpoint
from pixrec_core.settings import TrackingSettings
from pixrec_core.stages import Work
from pixrec_core.training import tracking

# MLflow's stores use a strategy that SQLAlchemy is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed: pip install 'pixrec[tracking]'")


@pytest.fixture
def tracked(shop):
    """Opens the shop with one training told to a store."""

    def of(uri: str, epochs: int = 1) -> Work:
        work = shop("text_only", training={"epochs": epochs})
        told = TrackingSettings(uri=uri, experiment="looks")
        return Work(work.settings.model_copy(update={"tracking": told}), work.dataset, work.variant)

    return of


@pytest.fixture
def store(tmp_path, monkeypatch):
    """URI of an empty store, and a client that reads it."""
    for name in tracking.ENVIRONMENT:
        monkeypatch.setitem(os.environ, name, tracking.ENVIRONMENT[name])
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    return uri, mlflow.MlflowClient(tracking_uri=uri)


def only_run(client):
    experiment = client.get_experiment_by_name("looks")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 1
    return runs[0]


@pytest.mark.slow
def test_a_training_that_fails_and_is_resumed_is_one_run_with_every_epoch_once(tracked, store) -> None:
    uri, client = store
    work = tracked(uri, epochs=2)

    def break_off(_epoch: dict) -> None:
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        pipeline.CHECKPOINT.materialise(work, on_epoch=break_off)
    assert only_run(client).info.status == "FAILED"

    pipeline.CHECKPOINT.materialise(work)
    run = only_run(client)
    assert run.info.status == "FINISHED"
    assert run.data.params["training.epochs"] == "2"
    assert run.data.params["model.backbone"] == "tiny"
    assert run.data.tags["variant"] == "text_only"
    assert run.data.tags["dataset"] == work.dataset
    assert run.data.tags["data_version.sequences"] == pipeline.CHECKPOINT.versions(work)["sequences"]
    epochs = files.read_json(work.variant_paths.checkpoint / checkpoint.CURVES)["epochs"]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2]
    for name, stored in (("loss", "loss"), ("recall@10", "recall_at_10")):
        points = client.get_metric_history(run.info.run_id, stored)
        assert [(point.step, point.value) for point in points] == [(e["epoch"], e[name]) for e in epochs]
    names = {artefact.path for artefact in client.list_artifacts(run.info.run_id)}
    assert names == {checkpoint.CARD, checkpoint.CURVES}


def test_without_mlflow_the_error_names_the_extra(tracked, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    work = tracked("sqlite:///nowhere.db")
    with pytest.raises(SettingsError, match=r"pip install 'pixrec\[tracking\]'"):
        pipeline.CHECKPOINT.materialise(work)


def test_a_server_that_is_down_stops_a_training_before_it_starts_and_no_password_is_told(tracked, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    work = tracked("http://me:hunter2@127.0.0.1:9/")
    with pytest.raises(SettingsError, match="MLflow cannot use it") as caught:
        pipeline.CHECKPOINT.materialise(work)
    assert "hunter2" not in str(caught.value)
    assert not work.variant_paths.checkpoint.exists()
