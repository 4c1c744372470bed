"""A message after each failed run: to the URL of `dagster.alert_url`, such as Slack's, and to addresses of e-mail."""

import html
from collections.abc import Iterator
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
