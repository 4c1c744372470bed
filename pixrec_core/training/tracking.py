"""A training as a run of an MLflow experiment, if settings name a tracking server.

transformers' MLflowCallback is not used: it logs the Trainer's hundred arguments instead of our settings, it ends the
training when the server fails, and a process has one active run for all of its threads.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pixrec_core import files
from pixrec_core.errors import SettingsError
from pixrec_core.models import checkpoint
from pixrec_core.printable import shown_url, without_secrets
from pixrec_core.stages import StageInputs, Work
from pixrec_core.training.trainer import Epoch

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

EpochCallback = Callable[[Epoch], None]

#: Defaults of the environment: no telemetry, and requests to a dead server fail after seconds, not four minutes.
ENVIRONMENT: Final = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3"}

#: Tag that identifies everything the outcome depends on; a resumed training finds its run by it.
FINGERPRINT: Final = "fingerprint"


@contextmanager
def mlflow_run(
    work: Work, inputs: StageInputs, on_epoch: EpochCallback = lambda _: None, *, trial: Path | None = None
) -> Iterator[EpochCallback]:
    """Yield a callback for the epochs of a training: `on_epoch`, and logging to MLflow if settings ask for it.

    At the end of the block the run gets the checkpoint's model card and record. It is marked as failed if the block
    raises. A resumed training continues its run. An outage does not stop the training: missing epochs are sent at its
    end. Tags are the fingerprint of the training and the versions of its inputs. `trial` is the checkpoint of a trial
    of `pixrec tune`, which is logged in place of the variant's; its run has the tag `stage`: `tune`.

    Raises:
        SettingsError: MLflow is not installed, or cannot use `tracking.uri`.
    """
    uri = work.settings.tracking.uri
    if uri is None:
        yield on_epoch
        return
    run = _open_run(uri, work, inputs, {"stage": "tune"} if trial else {})

    def on_epoch_and_log(epoch: Epoch) -> None:
        on_epoch(epoch)
        with run.suppress_and_warn():
            run.log_epochs([epoch])

    try:
        yield on_epoch_and_log
    except BaseException as error:
        run.end("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    with run.suppress_and_warn():
        run.log_checkpoint(trial or work.variant_paths.checkpoint)
    run.end("FINISHED")


def log_test_metrics(work: Work, metrics: Mapping[str, Any], trainings: Mapping[str, str]) -> None:
    """Log the metrics of an evaluation: of all methods in a new run, of a variant also in the run of its training.

    Names are `method/protocol/metric`, in the run of a training `test/protocol/metric`. An outage is a warning. Without
    `tracking.uri` nothing is logged. `metrics` is the content of metrics.json, `trainings` the fingerprint of the
    training of each variant.

    Raises:
        SettingsError: MLflow is not installed.
    """
    uri = work.settings.tracking.uri
    if uri is None:
        return
    client_class = _client_class()
    try:
        client = client_class(tracking_uri=uri)
        experiment = _experiment_id(client, work.settings.tracking.experiment, work.settings.data_dir)
        tags = {"dataset": work.dataset, "stage": "evaluation"}
        run = _Run(
            uri, client, client.create_run(experiment, tags=tags, run_name=f"{work.dataset}|evaluation").info.run_id
        )
        for method in metrics["protocols"]["seen_allowed"]["methods"]:
            values = {
                f"{protocol}/{metric}": estimate["value"]
                for protocol, found in metrics["protocols"].items()
                for metric, estimate in found["methods"].get(method, {}).items()
            }
            run.log_metrics({f"{method}/{name}": value for name, value in values.items()})
            of_training = f"tags.{FINGERPRINT} = '{trainings.get(method)}'"
            for found in client.search_runs([experiment], of_training, max_results=1) if method in trainings else ():
                _Run(uri, client, found.info.run_id).log_metrics({f"test/{name}": n for name, n in values.items()})
        run.end("FINISHED")
    except Exception as error:
        log.warning("warning: Could not log the evaluation to MLflow: %s", without_secrets(str(error), uri))


def _client_class() -> Any:
    """Return `MlflowClient`; mypy does not know MLflow.

    Raises:
        SettingsError: it is not installed.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow import MlflowClient
    except ImportError:
        message = "tracking.uri is set, but MLflow is not installed: pip install '.[tracking]' in the checkout"
        raise SettingsError(message) from None
    return MlflowClient


def _open_run(uri: str, work: Work, inputs: StageInputs, tags: Mapping[str, str]) -> "_Run":
    """Return the unfinished run of this training, or a new one."""
    client_class = _client_class()
    name, experiment_name = f"{work.dataset}|{work.variant}", work.settings.tracking.experiment
    try:
        client = client_class(tracking_uri=uri)
        experiment = _experiment_id(client, experiment_name, work.settings.data_dir)
        unfinished = f"tags.{FINGERPRINT} = '{inputs.fingerprint}' and attributes.status != 'FINISHED'"
        if found := client.search_runs([experiment], unfinished, max_results=1):
            run = _Run(uri, client, found[0].info.run_id)
            client.update_run(run.id, status="RUNNING")
        else:
            tags = {"dataset": work.dataset, "variant": str(work.variant), FINGERPRINT: inputs.fingerprint, **tags}
            tags |= {f"data_version.{source}": version for source, version in inputs.versions.items()}
            run = _Run(uri, client, client.create_run(experiment, tags=tags, run_name=name).info.run_id)
        run.log_settings({"model": work.trained.model, "training": work.trained.training})
    except Exception as error:
        reason = without_secrets(str(error), uri)
        raise SettingsError(f"MLflow cannot use tracking.uri = {shown_url(uri)!r}: {reason}") from None
    log.info("%s: run %s of MLflow experiment %s", name, run.id, experiment_name)
    return run


def _experiment_id(client: "MlflowClient", name: str, data_dir: Path) -> str:
    """Return the id of an experiment, which is created if it does not exist.

    A server decides where artefacts go. A database without a server would put them into the current folder.
    """
    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    has_server = client.tracking_uri.startswith(("http:", "https:", "databricks"))
    location = None if has_server else (data_dir / ".mlflow").as_uri()
    return str(client.create_experiment(name, artifact_location=location))


class _Run:
    """An MLflow run of a training."""

    def __init__(self, uri: str, client: "MlflowClient", run_id: str) -> None:
        self.id = run_id
        self._uri = uri
        self._client = client
        self._logged = {metric.step for metric in client.get_metric_history(run_id, "loss")}

    @contextmanager
    def suppress_and_warn(self) -> Iterator[None]:
        """Turn errors into warnings: a failing server must not stop a training."""
        try:
            yield
        except Exception as error:
            log.warning(
                "warning: Could not log to MLflow, but training continues: %s", without_secrets(str(error), self._uri)
            )

    def log_settings(self, sections: Mapping[str, Any]) -> None:
        """Log settings as parameters, such as `training.epochs`."""
        from mlflow.entities import Param
        from transformers.utils import flatten_dict

        flat = flatten_dict({name: section.model_dump(mode="json") for name, section in sections.items()})
        self._client.log_batch(self.id, params=[Param(name, str(value)) for name, value in flat.items()])

    def log_epochs(self, epochs: list[Epoch]) -> None:
        """Log the metrics of epochs that have not been logged yet."""
        for epoch in epochs:
            number = int(epoch["epoch"])
            if number not in self._logged:
                self.log_metrics({name: value for name, value in epoch.items() if name != "epoch"}, number)
                self._logged.add(number)

    def log_checkpoint(self, folder: Path) -> None:
        """Log what a checkpoint records about its training, and its model card."""
        record = files.read_json(folder / checkpoint.CURVES)
        self.log_epochs(record["epochs"])
        first = record["epochs"][0]
        self.log_metrics({name: n for name, n in record.items() if isinstance(n, int | float) and name not in first})
        for name in (checkpoint.CARD, checkpoint.CURVES):
            self._client.log_artifact(self.id, str(folder / name))

    def end(self, status: str) -> None:
        """Set the final status."""
        with self.suppress_and_warn():
            self._client.set_terminated(self.id, status)

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log values at a step, which is the epoch."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)  # MLflow does not accept `@` in names
        metrics = [Metric(name.replace("@", "_at_"), value, now, step) for name, value in values.items()]
        self._client.log_batch(self.id, metrics=metrics)
