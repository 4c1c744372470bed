"""What section `[dagster]` sets; each test imports the definitions again, since they are read once per process."""

import base64
import importlib
import json
import socketserver
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import trustme

from pixrec_assets import build_definitions
from pixrec_assets.definitions import defs
from pixrec_core import pipeline
from pixrec_core.errors import SettingsError
from pixrec_core.settings import Settings, load_settings
from tests.assets import fake_stages


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


@pytest.fixture
def definitions_of(assets_anew: None, project: Path, monkeypatch) -> Callable[..., dg.Definitions]:
    """Return the definitions with some settings; the sequences break their contract."""
    monkeypatch.setattr(fake_stages, "sequences", fake_stages.broken("sequences"))
    fake_stages.install(monkeypatch.setattr)

    def build(**settings: Any) -> dg.Definitions:
        for name in [name for name in sys.modules if name.partition(".")[0] == "pixrec_assets"]:
            del sys.modules[name]
        for name, value in settings.items():
            monkeypatch.setenv(f"PIXREC_DAGSTER__{name.upper()}", str(value))
        return importlib.import_module("pixrec_assets.definitions").defs

    return build


def test_schedules_and_freshness(definitions_of):
    defs = definitions_of(time_zone="Asia/Tokyo", retrain="0 1 * * 0", max_age_days=8, keep_runs_days=30)
    schedules = map(defs.resolve_schedule_def, ("weekly_data", "daily_refresh", "delete_old_runs_daily"))
    assert [(each.cron_schedule, each.execution_timezone) for each in schedules] == [
        ("0 1 * * 0", "Asia/Tokyo"),
        ("0 4 * * *", "Asia/Tokyo"),
        ("0 2 * * *", None),
    ]
    policy = defs.resolve_asset_graph().get(dg.AssetKey("promoted")).freshness_policy
    assert policy.fail_window.to_timedelta().days == 8


@contextmanager
def failed_run(defs: dg.Definitions) -> Iterator[dg.RunFailureSensorContext]:
    """What a sensor gets after a run of the broken sequences."""
    with dg.DagsterInstance.ephemeral() as instance:
        job = defs.resolve_job_def("prepare_data")
        result = job.execute_in_process(partition_key="sample", instance=instance, raise_on_error=False)
        event = next(each for each in result.all_events if each.event_type_value == "PIPELINE_FAILURE")
        yield dg.build_run_status_sensor_context("x", event, instance, result.dagster_run).for_run_failure()


def alert(defs: dg.Definitions) -> None:
    assert defs.resolve_sensor_def("alert_after_failure").default_status == dg.DefaultSensorStatus.STOPPED
    with failed_run(defs) as context:
        sys.modules["pixrec_assets.sensors"].alert_after_failure(context)


def test_a_failed_run_is_posted(definitions_of, receiver):
    url, received = receiver
    alert(definitions_of(alert_url=url))
    ((first, step),) = [each["text"].split("\n") for each in received]
    assert first.startswith("PixRec: run ")
    assert first.endswith(" of prepare_data failed for sample")
    assert step.startswith("sequences: ContractError: ")


def test_the_alert_of_an_unexpected_error_has_its_reason(definitions_of, receiver, monkeypatch):
    url, received = receiver
    broken = replace(pipeline.RAW, run=lambda work: int("<!channel> &"))
    monkeypatch.setattr(pipeline, "RAW", broken)
    alert(definitions_of(alert_url=url))
    assert received[0]["text"].split("\n")[1:] == [
        "raw: ValueError: invalid literal for int() with base 10: '&lt;!channel&gt; &amp;'"
    ], "Slack takes a cell of a raw file for no mention"


def test_a_receiver_that_refuses_is_named_without_its_secret(definitions_of, receiver):
    url, received = receiver
    with pytest.raises(dg.Failure) as raised:
        alert(definitions_of(alert_url=f"{url}/broken/T0P-SECRET"))
    text = str(raised.value.description)
    assert "the receiver of dagster.alert_url did not take the message (status 500)" in text
    assert "T0P-SECRET" not in text
    assert received


EMAIL = {"to": ["owner@example.com", "ops@example.com"], "sender": "shop@example.com", "host": "localhost"}


def test_a_failed_run_is_mailed(mailbox, definitions_of, monkeypatch):
    email = EMAIL | {"port": mailbox.port, "password": "right"}
    defs = definitions_of(email=json.dumps(email))
    alerts = sys.modules["pixrec_assets.sensors"]
    described = alerts._describe
    monkeypatch.setattr(alerts, "_describe", lambda context: described(context) + "\nitem <b>Grüße</b>")
    (sensor,) = alerts.ALERTS
    assert sensor.default_status == dg.DefaultSensorStatus.STOPPED
    assert defs.resolve_sensor_def("email_after_failure") is sensor
    with failed_run(defs) as context:
        sensor(context)
        (mail,) = mailbox.mails
        assert "To: owner@example.com,ops@example.com" in mail
        assert "Subject: Dagster Run Failed: prepare_data" in mail
        assert " of prepare_data failed for sample" in mail
        assert "sequences: ContractError: " in mail
        assert "item &lt;b&gt;Gr&#252;&#223;e&lt;/b&gt;" in mail, "texts of data are neither HTML nor an encoding error"
        definitions_of(email=json.dumps(email | {"password": "T0P-SECRET"}))
        (sensor,) = sys.modules["pixrec_assets.sensors"].ALERTS
        with pytest.raises(Exception, match="535") as raised:
            sensor(context)
    assert "T0P-SECRET" not in str(raised.value)
    assert mailbox.logins == ["\0shop@example.com\0right", "\0shop@example.com\0T0P-SECRET"]


@pytest.mark.parametrize(("days", "deleted", "left"), [(30, 0, 2), (1e-9, 1, 1)])
def test_old_runs_are_deleted_and_new_ones_kept(definitions_of, instance, days, deleted, left):
    defs = definitions_of(keep_runs_days=days)
    raw = [each for each in defs.resolve_asset_graph().assets_defs if dg.AssetKey("raw_reviews") in each.keys]
    assert dg.materialize(raw, partition_key="sample", instance=instance).success
    result = defs.resolve_job_def("delete_old_runs").execute_in_process(instance=instance)
    assert (result.output_for_node("delete_runs"), len(instance.get_run_ids())) == (deleted, left)


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


def test_a_component_of_a_dg_project_has_the_datasets_of_its_settings(assets_anew, project, tmp_path, monkeypatch):
    package = tmp_path / "mine"
    folder = package / "defs" / "shop"
    folder.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "defs" / "__init__.py").touch()
    (folder / "defs.yaml").write_text("type: pixrec_assets.component.PixRecComponent\nattributes:\n  config: my.toml\n")
    (folder / "my.toml").write_text('[datasets.mine.source]\nkind = "sample"\n')
    project = '[tool.dg]\ndirectory_type = "project"\n[tool.dg.project]\nroot_module = "mine"\n'
    (tmp_path / "pyproject.toml").write_text(project)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "mine", None)
    del sys.modules["mine"]
    shop = dg.load_from_defs_folder(path_within_project=package)
    assert shop.resolve_job_def("prepare_data").partitions_def.get_partition_keys() == ["mine"]
