"""What section `[dagster]` sets, in a process of its own, since Dagster's definitions are read once per process."""

import base64
import json
import os
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import trustme

from pixrec_assets import build_definitions
from pixrec_assets.definitions import defs
from pixrec_core.errors import SettingsError
from pixrec_core.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
PROJECT = """if True:
    import sys
    import dagster as dg
    from datetime import timedelta
    from tests.assets import fake_stages
    from pixrec_core import pipeline
    fake_stages.sequences = fake_stages.broken("sequences")
    fake_stages.install()
    from pixrec_assets.definitions import defs
"""


class Receiver(BaseHTTPRequestHandler):
    """Keeps what is posted; answers 500 below /broken."""

    received: list[Any]

    def do_POST(self) -> None:
        self.received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(500 if self.path.startswith("/broken") else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[Any]]]:
    """URL of a server on loopback, and what it received."""
    handler = type("Handler", (Receiver,), {"received": []})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler.received
        server.shutdown()


class Mailbox(socketserver.StreamRequestHandler):
    """An SMTP server over TLS; keeps the lines after each DATA, and what clients logged in with."""

    tls: ssl.SSLContext
    mails: list[str]
    logins: list[str]

    def handle(self) -> None:
        with self.tls.wrap_socket(self.request, server_side=True) as client, client.makefile("rwb") as lines:

            def answer(text: str) -> None:
                lines.write(f"{text}\r\n".encode())
                lines.flush()

            answer("220 loopback")
            for line in iter(lines.readline, b""):
                command = line.decode().split()
                command[0] = command[0].lower()
                if command[0] == "ehlo":
                    answer("250-loopback\r\n250 AUTH PLAIN")
                elif command[0] == "auth":
                    self.logins.append(base64.b64decode(command[2]).decode())
                    answer("235 welcome" if self.logins[-1].endswith("right") else "535 who are you?")
                elif command[0] == "data":
                    answer("354 go on")
                    self.mails.append(b"".join(iter(lines.readline, b".\r\n")).decode("ascii"))
                    answer("250 thanks")
                else:
                    answer("221 bye" if command[0] == "quit" else "250 fine")


@pytest.fixture
def mailbox(tmp_path, monkeypatch) -> Iterator[type[Mailbox]]:
    """A server on a port of loopback, whose authority processes of this test trust."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(tls)
    handler = type("Handler", (Mailbox,), {"tls": tls, "mails": [], "logins": []})
    with socketserver.TCPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        handler.port = server.server_address[1]
        yield handler
        server.shutdown()


def run(code: str, folder: Path, **settings: Any) -> str:
    variables = {f"PIXREC_DAGSTER__{name.upper()}": str(value) for name, value in settings.items()}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIXREC_", "DAGSTER_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROJECT + code],
        cwd=folder, env=kept | variables | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_schedules_and_freshness(tmp_path):
    code = """
    for name in ("weekly_data", "daily_refresh", "delete_old_runs_daily"):
        schedule = defs.resolve_schedule_def(name)
        print(name, schedule.cron_schedule, schedule.execution_timezone)
    policy = defs.resolve_asset_graph().get(dg.AssetKey("promoted")).freshness_policy
    print(policy.fail_window.to_timedelta().days)
    """
    text = run(code, tmp_path, time_zone="Asia/Tokyo", retrain="0 1 * * 0", max_age_days=8, keep_runs_days=30)
    assert text.splitlines() == [
        "weekly_data 0 1 * * 0 Asia/Tokyo",
        "daily_refresh 0 4 * * * Asia/Tokyo",
        "delete_old_runs_daily 0 2 * * * None",
        "8",
    ]


FAILING = """
    with dg.DagsterInstance.ephemeral() as instance:
        job = defs.resolve_job_def("prepare_data")
        result = job.execute_in_process(partition_key="sample", instance=instance, raise_on_error=False)
        event = next(each for each in result.all_events if each.event_type_value == "PIPELINE_FAILURE")
        context = dg.build_run_status_sensor_context("x", event, instance, result.dagster_run).for_run_failure()
        sensor = defs.resolve_sensor_def("alert_after_failure")
        assert sensor.default_status == dg.DefaultSensorStatus.STOPPED
        from pixrec_assets.sensors import alert_after_failure
        try:
            alert_after_failure(context)
        except dg.Failure as failure:
            print(failure.description)
"""


def test_a_failed_run_is_posted(tmp_path, receiver):
    url, received = receiver
    assert run(FAILING, tmp_path, alert_url=url) == ""
    ((first, step),) = [each["text"].split("\n") for each in received]
    assert first.startswith("PixRec: run ")
    assert first.endswith(" of prepare_data failed for sample")
    assert step.startswith("sequences: ContractError: ")


def test_the_alert_of_an_unexpected_error_has_its_reason(tmp_path, receiver):
    url, received = receiver
    code = """
    from dataclasses import replace
    pipeline.RAW = replace(pipeline.RAW, run=lambda work: int("<!channel> &"))
    """
    run(code + FAILING, tmp_path, alert_url=url)
    assert received[0]["text"].split("\n")[1:] == [
        "raw: ValueError: invalid literal for int() with base 10: '&lt;!channel&gt; &amp;'"
    ], "Slack takes a cell of a raw file for no mention"


def test_a_receiver_that_refuses_is_named_without_its_secret(tmp_path, receiver):
    url, received = receiver
    text = run(FAILING, tmp_path, alert_url=f"{url}/broken/T0P-SECRET")
    assert "the receiver of dagster.alert_url did not take the message (status 500)" in text
    assert "T0P-SECRET" not in text
    assert received


EMAIL = {"to": ["owner@example.com", "ops@example.com"], "sender": "shop@example.com", "host": "localhost"}


def test_a_failed_run_is_mailed(tmp_path, mailbox):
    code = """
    import pixrec_assets.sensors as alerts
    described = alerts._describe
    alerts._describe = lambda context: described(context) + "\\nitem <b>Grüße</b>"
    with dg.DagsterInstance.ephemeral() as instance:
        job = defs.resolve_job_def("prepare_data")
        result = job.execute_in_process(partition_key="sample", instance=instance, raise_on_error=False)
        event = next(each for each in result.all_events if each.event_type_value == "PIPELINE_FAILURE")
        context = dg.build_run_status_sensor_context("x", event, instance, result.dagster_run).for_run_failure()
        (sensor,) = alerts.ALERTS
        assert sensor.default_status == dg.DefaultSensorStatus.STOPPED
        assert defs.resolve_sensor_def("email_after_failure") is sensor
        try:
            sensor(context)
        except Exception as error:
            print(error)
    """
    email = EMAIL | {"port": mailbox.port, "password": "right"}
    assert run(code, tmp_path, email=json.dumps(email)) == ""
    (mail,) = mailbox.mails
    assert "To: owner@example.com,ops@example.com" in mail
    assert "Subject: Dagster Run Failed: prepare_data" in mail
    assert " of prepare_data failed for sample" in mail
    assert "sequences: ContractError: " in mail
    assert "item &lt;b&gt;Gr&#252;&#223;e&lt;/b&gt;" in mail, "texts of data are neither HTML nor an encoding error"
    text = run(code, tmp_path, email=json.dumps(email | {"password": "T0P-SECRET"}))
    assert "535" in text
    assert "T0P-SECRET" not in text
    assert mailbox.logins == ["\0shop@example.com\0right", "\0shop@example.com\0T0P-SECRET"]


def test_old_runs_are_deleted_and_new_ones_kept(tmp_path):
    code = """
    with dg.DagsterInstance.ephemeral() as instance:
        raw = [each for each in defs.resolve_asset_graph().assets_defs if dg.AssetKey("raw_reviews") in each.keys]
        assert dg.materialize(raw, partition_key="sample", instance=instance).success
        job = defs.resolve_job_def("delete_old_runs")
        result = job.execute_in_process(instance=instance)
        print(result.output_for_node("delete_runs"), len(instance.get_run_ids()))
    """
    assert run(code, tmp_path, keep_runs_days=30).split() == ["0", "2"]
    assert run(code, tmp_path, keep_runs_days=1e-9).split() == ["1", "1"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("TIME_ZONE", "Mars/Olympus", "unknown time zone; .*received 'Mars/Olympus'"),
        ("ALERT_URL", "hooks.example/secret", "must begin with https://"),
        ("MAX_AGE_DAYS", "0", "greater than 0"),
        ("EMAIL__SENDER", "nobody", "must be an address such as"),
        ("EMAIL", '{"to": ["a@b"], "password": "secret"}', "sender and host must be set"),
    ],
)
def test_wrong_settings_are_named(project, monkeypatch, name, value, message):
    monkeypatch.setenv(f"PIXREC_DAGSTER__{name}", value)
    with pytest.raises(SettingsError, match=f"PIXREC_DAGSTER__{name}.*{message}") as raised:
        load_settings()
    assert "secret" not in str(raised.value)


def test_definitions_for_another_project_are_those_of_its_settings(project):
    built = build_definitions()
    assert (built.assets, built.jobs) == (defs.assets, defs.jobs)
    assert built.executor is None, "the other project may have one"
    other = Settings(root=project, datasets={"books": {"source": {"kind": "sample", "seed": 9}}})
    with pytest.raises(SettingsError, match="built from other settings"):
        build_definitions(other)


def test_the_source_of_a_stage_is_linked():
    (reference,) = (
        defs.resolve_asset_graph().get(dg.AssetKey("blend")).metadata["dagster/code_references"].code_references
    )
    line = Path(reference.file_path).read_text().splitlines()[reference.line_number - 1]
    assert line.startswith("def blend(")


def test_a_component_of_a_dg_project_has_the_datasets_of_its_settings(tmp_path):
    package = tmp_path / "mine"
    folder = package / "defs" / "shop"
    folder.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "defs" / "__init__.py").touch()
    (folder / "defs.yaml").write_text("type: pixrec_assets.component.PixRecComponent\nattributes:\n  config: my.toml\n")
    (folder / "my.toml").write_text('[datasets.mine.source]\nkind = "sample"\n')
    project = '[tool.dg]\ndirectory_type = "project"\n[tool.dg.project]\nroot_module = "mine"\n'
    (tmp_path / "pyproject.toml").write_text(project)
    code = """if True:
        import sys
        from pathlib import Path
        import dagster as dg
        sys.path.insert(0, str(Path.cwd()))
        defs = dg.load_from_defs_folder(path_within_project=Path("mine").resolve())
        print(*defs.resolve_job_def("prepare_data").partitions_def.get_partition_keys())
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIXREC_", "DAGSTER_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=kept | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "mine\n", done.stderr
