"""A training as a run of an MLflow experiment, where settings name one; TensorBoard's curves are written anyway.

The callback of transformers is not used: it logs the hundred arguments of its Trainer instead of our settings, and
takes the run to go on with from environment variables. MLflow's client holds no state outside of itself.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from pixrec_core import files
from pixrec_core.errors import SettingsError
from pixrec_core.models import checkpoint
from pixrec_core.settings import without_secrets
from pixrec_core.stages import StageInputs, Work
from pixrec_core.training.trainer import Epoch

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

Listener = Callable[[Epoch], None]

#: Unless the environment says otherwise: nothing is told to MLflow's makers, and a server that is down is given up
#: within seconds, not after the four minutes of its seven retries.
ENVIRONMENT: Final = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3"}

#: Tag of what a training is made from, by which a resumed one finds its run.
FINGERPRINT: Final = "fingerprint"


@contextmanager
def tracked(work: Work, inputs: StageInputs, on_epoch: Listener = lambda _: None) -> Iterator[Listener]:
    """Yield what is to be told of each epoch of a training: `on_epoch`, and MLflow's run where settings ask for one.

    The run is finished when the block ends, and then has the checkpoint's model card and record; it has failed when
    the block raises. A training that is resumed goes on in its run. An outage on the way stops no training: what
    was not sent is sent with the next epoch.

    Args:
        work: where the checkpoint is trained.
        inputs: fingerprint of the training and versions of its inputs; the run records both.
        on_epoch: told first.

    Raises:
        SettingsError: MLflow is not installed, or what `tracking` names cannot be reached.
    """
    settings = work.settings.tracking
    if settings.uri is None:
        yield on_epoch
        return
    run = _opened(settings.uri, work, inputs.fingerprint, inputs.versions)

    def tell_both(epoch: Epoch) -> None:
        on_epoch(epoch)
        run.tell(epoch)

    try:
        yield tell_both
    except BaseException as error:
        run.end("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    run.finish(work.variant_paths.checkpoint)


def _opened(uri: str, work: Work, fingerprint: str, data: Mapping[str, str]) -> "_Run":
    """The run of this very training that has not ended well yet, or a new one."""
    client = _client(uri)
    name = work.settings.tracking.experiment
    try:
        experiment = _experiment(client, name, work.settings.data_dir)
        run = _unfinished(client, experiment, fingerprint)
        if run is None:
            tags = {"dataset": work.dataset, "variant": str(work.variant), FINGERPRINT: fingerprint}
            tags |= {f"data_version.{name}": version for name, version in data.items()}
            run = _Run(client, client.create_run(experiment, tags=tags, run_name=_name(work)).info.run_id)
        run.describe(work)
    except Exception as error:
        raise _unusable(uri, error) from None
    log.info("%s: run %s of MLflow's experiment %s", _name(work), run.number, name)
    return run


def _client(uri: str) -> "MlflowClient":
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow import MlflowClient
    except ImportError:
        message = "tracking.uri is set, but MLflow is not installed: pip install '.[tracking]' in the checkout"
        raise SettingsError(message) from None
    try:
        return MlflowClient(tracking_uri=uri)
    except Exception as error:
        raise _unusable(uri, error) from None


def _unusable(uri: str, error: Exception) -> SettingsError:
    return SettingsError(f"tracking.uri is {without_secrets(uri)!r}, and MLflow cannot use it: {_told(uri, error)}")


def _told(uri: str, error: Exception) -> str:
    """What MLflow, a database's driver or the network said; each may quote the URI, or the end of it alone."""
    parts, text = urlsplit(uri), str(error)
    for secret in filter(None, (parts.password, unquote(parts.password or ""), parts.query)):
        text = text.replace(secret, "***")
    return without_secrets(text)


def _name(work: Work) -> str:
    return f"{work.dataset}|{work.variant}"


def _experiment(client: "MlflowClient", name: str, data_dir: Path) -> str:
    """Number of the experiment, which is made where there is none.

    A server says where artefacts go; a database without one would put them below the working folder of the moment.
    """
    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    served = client.tracking_uri.startswith(("http:", "https:", "databricks"))
    return str(client.create_experiment(name, artifact_location=None if served else (data_dir / ".mlflow").as_uri()))


def _unfinished(client: "MlflowClient", experiment: str, fingerprint: str) -> "_Run | None":
    which = f"tags.{FINGERPRINT} = '{fingerprint}' and attributes.status != 'FINISHED'"
    found = client.search_runs([experiment], which, max_results=1)
    if not found:
        return None
    number = found[0].info.run_id
    client.update_run(number, status="RUNNING")
    return _Run(client, number, {metric.step for metric in client.get_metric_history(number, "loss")})


class _Run:
    """A run that is under way.

    Args:
        client: of the store that has it.
        number: its id.
        sent: epochs that the store has already.
    """

    def __init__(self, client: "MlflowClient", number: str, sent: set[int] | None = None) -> None:
        self.number = number
        self._client = client
        self._sent = sent or set()
        self._told: list[Epoch] = []

    def describe(self, work: Work) -> None:
        """Send the settings of the training."""
        from mlflow.entities import Param

        sections = {"model": work.trained.model, "training": work.trained.training}
        flat = _flat({name: section.model_dump(mode="json") for name, section in sections.items()})
        self._client.log_batch(self.number, params=[Param(name, str(value)) for name, value in flat.items()])

    def tell(self, epoch: Epoch) -> None:
        """Send an epoch, and those before that could not be sent."""
        self._told.append(epoch)
        with suppress_and_log(self._client.tracking_uri):
            self._send(self._told)

    def finish(self, folder: Path) -> None:
        """Send what a checkpoint tells of its training, and end well."""
        record = files.read_json(folder / checkpoint.CURVES)
        with suppress_and_log(self._client.tracking_uri):
            self._send(record["epochs"])
            of_epochs = record["epochs"][0]
            whole = {name: n for name, n in record.items() if isinstance(n, int | float) and name not in of_epochs}
            self._log(whole)
            for name in (checkpoint.CARD, checkpoint.CURVES):
                self._client.log_artifact(self.number, str(folder / name))
        self.end("FINISHED")

    def end(self, status: str) -> None:
        with suppress_and_log(self._client.tracking_uri):
            self._client.set_terminated(self.number, status)

    def _send(self, epochs: list[Epoch]) -> None:
        for epoch in epochs:
            number = int(epoch["epoch"])
            if number not in self._sent:
                self._log({name: value for name, value in epoch.items() if name != "epoch"}, number)
                self._sent.add(number)

    def _log(self, values: Mapping[str, float], step: int = 0) -> None:
        """Send numbers; MLflow takes no `@` in their names."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name.replace("@", "_at_"), value, now, step) for name, value in values.items()]
        self._client.log_batch(self.number, metrics=metrics)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as `outer.inner`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


@contextmanager
def suppress_and_log(uri: str) -> Iterator[None]:
    """A training is worth more than what is told of it."""
    try:
        yield
    except Exception as error:
        log.warning("MLflow could not be told: %s", _told(uri, error))
