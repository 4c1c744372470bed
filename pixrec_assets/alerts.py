"""A message after each failed run, to the URL of `dagster.alert_url`: Slack, Mattermost or a receiver of your own."""

from typing import Final

import dagster as dg
import requests

from pixrec_assets.partitions import SETTINGS

TIMEOUT_S: Final = 30


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
        requests.post(url.get_secret_value(), json={"text": _describe(context)}, timeout=TIMEOUT_S).raise_for_status()
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
        reason = described or (data.error.message if data.error else "no reason was recorded")
        lines.append(f"{event.step_key}: {reason.strip().splitlines()[0] if reason.strip() else 'no reason'}")
    return "\n".join(lines if lines[1:] else [*lines, context.failure_event.message or "no reason was recorded"])


#: Only where a URL is set: without one there is nothing to send.
ALERTS: Final = [alert_after_failure] if SETTINGS.dagster.alert_url else []
