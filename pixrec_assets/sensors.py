"""Sensors: one prepares a dataset whose raw files changed, one trains what new data made stale, two send alerts.

After each failed run a message goes to the URL of `dagster.alert_url`, such as Slack's, and to addresses of e-mail.
"""

import hashlib
import html
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import dagster as dg
import requests

from pixrec_assets.jobs import PREPARE_DATA
from pixrec_assets.partitions import JOINT, SETTINGS
from pixrec_core import files, pipeline
from pixrec_core.data import raw_files, raw_lines
from pixrec_core.errors import PixRecError
from pixrec_core.settings import Settings
from pixrec_core.stages import Work

#: Seconds since the last change of a file; a file that may still be copied waits for a later tick.
SETTLED_S: Final = 60.0
TIMEOUT_S: Final = 30  # of the receiver of alerts

#: State of a dataset's files between two ticks: `stats` (size and time) by path, and `checksums` in the order of files.
Seen = dict[str, Any]

follow_data: Final = dg.AutomationConditionSensorDefinition(
    "follow_data",
    target=dg.AssetSelection.groups(*([JOINT] if SETTINGS.joint else []), "model", "evaluation"),
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Trains and evaluates what new data made stale, following the automation condition of each asset.",
)


@dg.sensor(
    name="new_raw_files",
    job=PREPARE_DATA,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Prepares a dataset whose files in a local folder have new content. Files are hashed only if their "
    "size or time changed, and used only after a minute without changes.",
)
def new_raw_files(context: dg.SensorEvaluationContext, settings: dg.ResourceParam[Settings]) -> dg.SensorResult:
    """Request one run per changed dataset. Missing files of one dataset are logged and do not hold up the others."""
    cursor: dict[str, Seen] = json.loads(context.cursor or "{}")
    run_requests, problems = [], []
    for dataset in settings.datasets:
        try:
            request, cursor[dataset] = _inspect_files(Work(settings, dataset), cursor.get(dataset, {}))
        except (PixRecError, OSError) as error:
            problems.append(f"{dataset}: {error}".replace("<name>", dataset))
        else:
            run_requests += [request] if request else []
    for problem in problems:
        context.log.warning(problem)
    skipped = None if run_requests else "; ".join(problems) or "no file in a local folder has new content"
    return dg.SensorResult(run_requests, skip_reason=skipped, cursor=json.dumps(cursor))


def _inspect_files(work: Work, seen: Seen) -> tuple[dg.RunRequest | None, Seen]:
    """Return the run that a dataset's files need, if any, and the state to keep for the next tick."""
    watched = raw_files.watched(work.dataset_settings.source, work.settings.root)
    stats = files.stat_snapshot(watched)
    if not watched or seen.get("stats") == stats:
        return None, seen
    for path in watched:
        raw_lines.require_content(path)
    if not _are_settled(watched):
        return None, seen
    checksums = [files.sha256_file(path) for path in watched]
    state = {"stats": stats, "checksums": checksums}
    was_built_before = not seen and pipeline.RAW.is_current(work)
    if was_built_before or seen.get("checksums") == checksums:
        return None, state
    return _request_run(work.dataset, stats), state


def _are_settled(watched: Sequence[Path]) -> bool:
    """Whether no file was changed just now; one with a time in the future was not, but the clock has gone back."""
    return all(abs(time.time() - path.stat().st_mtime) >= SETTLED_S for path in watched)


def _request_run(dataset: str, stats: Mapping[str, Any]) -> dg.RunRequest:
    """The run key contains the files' times, so content that returns later is requested again."""
    key = hashlib.sha256(json.dumps(stats, sort_keys=True).encode()).hexdigest()[:16]
    return dg.RunRequest(run_key=f"{dataset} {key}", partition_key=dataset)


@dg.run_failure_sensor(
    name="alert_after_failure",
    default_status=dg.DefaultSensorStatus.STOPPED,
    minimum_interval_seconds=60,
    description="Posts a message to `dagster.alert_url` after each failed run: job, partition, step and reason.",
)
def alert_after_failure(context: dg.RunFailureSensorContext) -> dg.SkipReason | None:
    """Send the message. A receiver that fails ends the tick as failed, without the secret parts of its URL."""
    url = SETTINGS.dagster.alert_url
    if url is None:
        return dg.SkipReason("dagster.alert_url is not set")
    try:
        # Cells of raw files are quoted: Slack would take `<!channel>` in one for a mention.
        text = html.escape(_describe(context), quote=False)
        requests.post(url.get_secret_value(), json={"text": text}, timeout=TIMEOUT_S).raise_for_status()
    except requests.RequestException as error:
        response = error.response
        reason = f"status {response.status_code}" if response is not None else type(error).__name__
        message = f"the receiver of dagster.alert_url did not take the message ({reason}); correct the URL"
        raise dg.Failure(message) from None
    return None


def _describe(context: dg.RunFailureSensorContext) -> str:
    """Return job and partition on the first line, then one line per failed step."""
    run = context.dagster_run
    partition = run.tags.get("dagster/partition")
    lines = [f"PixRec: run {run.run_id[:8]} of {run.job_name} failed" + (f" for {partition}" if partition else "")]
    for event in context.get_step_failure_events():
        data = event.step_failure_data
        described = data.user_failure_data.description if data.user_failure_data else None
        error = data.error and (data.error.cause or data.error)  # Dagster wraps what the code of the step raises
        reason = described or (error.message if error else "no reason was recorded")
        lines.append(f"{event.step_key}: {reason.strip().splitlines()[0] if reason.strip() else 'no reason'}")
    return "\n".join(lines if lines[1:] else [*lines, context.failure_event.message or "no reason was recorded"])


def _describe_in_html(context: dg.RunFailureSensorContext) -> str:
    """Return `_describe` for Dagster's message, which is HTML and must be ASCII."""
    return f"<pre>{html.escape(_describe(context))}</pre>".encode("ascii", "xmlcharrefreplace").decode()


def _alerts() -> Iterator[dg.SensorDefinition]:
    """Yield sensors that have a receiver."""
    email = SETTINGS.dagster.email
    if SETTINGS.dagster.alert_url:
        yield alert_after_failure
    if email.to:
        assert email.sender, "settings check this"
        assert email.host, "and this"
        assert email.password, "and this"
        yield dg.make_email_on_run_failure_sensor(
            name="email_after_failure",
            email_from=email.sender,
            email_to=email.to,
            email_password=email.password.get_secret_value(),
            email_body_fn=_describe_in_html,
            smtp_host=email.host,
            smtp_port=email.port,
            smtp_user=email.user,
            smtp_type=email.security.upper(),
        )


ALERTS: Final = list(_alerts())
