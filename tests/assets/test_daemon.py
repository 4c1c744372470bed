"""The daemon at work: a sensor that is turned on makes a run, and a run whose process is killed is run again.

A backfill of the same dataset does not disturb a run of the UI.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pixrec_core import pipeline
from pixrec_core.paths import DatasetPaths
from pixrec_core.stages import Stage
from tests.assets.dev_server import PLACE, ROOT, Server, dagster_dev, until
from tests.forks import run_command

#: Photos of `films` take for ever the first time, with half a manifest written; those of `songs` wait for `go`.
DEFINITIONS = """
import os, signal, time
from pixrec_core import files
from tests.assets import fake_stages

whole = fake_stages.images

def images(work):
    pid = work.settings.root / "pid"
    if work.dataset == "films" and not pid.exists():
        with files.replacing(work.paths.images_manifest) as half:
            half.write_bytes(b"PAR1")
            files.write_json(pid, os.getpid())
            signal.pause()
    if work.dataset == "songs":
        (work.settings.root / "waits").touch()
        while not (work.settings.root / "go").exists():
            time.sleep(0.1)
    return whole(work)

fake_stages.images = images
fake_stages.install()
from pixrec_assets.definitions import defs
"""
TOML = """
[datasets]
books = { source = { kind = "amazon_2023", folder = "books" } }
films = { source = { kind = "sample" } }
songs = { source = { kind = "sample", seed = 1 } }
"""
COMMAND = "import shop_definitions; from pixrec_assets.cli import main; main()"
#: Seconds. A pool slot of a dead run is given back as long after its end; the shipped minute would be waited for.
MONITORING = {"poll_interval_seconds": 1, "free_slots_after_run_end_seconds": 1}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("daemon")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with dagster_dev(folder, DEFINITIONS, TOML, **MONITORING) as server:
        yield server


START_SENSOR = """mutation ($at: SensorSelector!) { startSensor(sensorSelector: $at) {
    __typename ... on Sensor { sensorState { id status } } ... on PythonError { message } } }"""
STOP_SENSOR = """mutation ($id: String!) { stopSensor(id: $id) {
    __typename ... on StopSensorMutationResult { instigationState { status } } } }"""
START_SCHEDULE = """mutation ($at: ScheduleSelector!) { startSchedule(scheduleSelector: $at) {
    ... on ScheduleStateResult { scheduleState { id status nextTick { timestamp } } } } }"""
STOP_SCHEDULE = """mutation ($id: String!) { stopRunningSchedule(id: $id) {
    ... on ScheduleStateResult { scheduleState { status } } } }"""
LAUNCH = """mutation ($what: ExecutionParams!) { launchRun(executionParams: $what) {
    __typename ... on LaunchRunSuccess { run { status } } ... on PythonError { message } } }"""


PARTITION = {"key": "dagster/partition"}


def ended_runs(server: Server, partition: str, count: int = 1) -> list[dict[str, Any]]:
    """Runs of a partition, if there are so many and all have ended; else none."""
    runs = server.runs(partition)
    return runs if len(runs) >= count and all(run["status"] in {"SUCCESS", "FAILURE"} for run in runs) else []


def is_made(paths: DatasetPaths, stage: Stage) -> bool:
    """Whether a stage has left its stamp; none is left before the artefact is whole."""
    return paths.stamp(stage.name).exists()


def test_schedule_and_sensor_can_be_turned_on_and_a_new_file_starts_a_run(server: Server, folder: Path) -> None:
    schedule = server.ask(START_SCHEDULE, at=PLACE | {"scheduleName": "weekly_data"})["startSchedule"]["scheduleState"]
    assert schedule["status"] == "RUNNING"
    assert time.gmtime(schedule["nextTick"]["timestamp"])[3:7] == (3, 0, 0, 0), "Monday at 03:00 UTC"
    stopped = server.ask(STOP_SCHEDULE, id=schedule["id"])["stopRunningSchedule"]
    assert stopped["scheduleState"]["status"] == "STOPPED"
    assert server.runs("books") == []

    (folder / "books").mkdir()
    for name in ("reviews.jsonl", "meta.jsonl"):
        (folder / "books" / name).write_text("{}\n")
        os.utime(folder / "books" / name, (1e9, 1e9))
    sensor = server.ask(START_SENSOR, at=PLACE | {"sensorName": "new_raw_files"})["startSensor"]["sensorState"]
    assert sensor["status"] == "RUNNING"
    (run,) = until(lambda: ended_runs(server, "books"))
    assert run["status"] == "SUCCESS"
    assert run["tags"]["dagster/sensor_name"] == "new_raw_files"
    assert is_made(DatasetPaths.of(folder / "data", "books"), pipeline.SEQUENCES)
    assert server.ask(STOP_SENSOR, id=sensor["id"])["stopSensor"]["instigationState"]["status"] == "STOPPED"


def test_a_run_whose_process_is_killed_is_marked_as_failed_and_run_again(server: Server, folder: Path) -> None:
    paths = DatasetPaths.of(folder / "data", "films")
    tags = [PARTITION | {"value": "films"}]
    what = {"selector": PLACE | {"jobName": "prepare_data"}, "executionMetadata": {"tags": tags}}
    assert server.ask(LAUNCH, what=what)["launchRun"] == {"__typename": "LaunchRunSuccess", "run": {"status": "QUEUED"}}
    until((folder / "pid").exists)
    assert is_made(paths, pipeline.ITEMS)
    assert not is_made(paths, pipeline.IMAGES)
    assert not paths.images_manifest.exists()
    assert list(paths.root.glob(".*.partial")), "it is killed in the middle of writing"
    os.kill(int((folder / "pid").read_text()), signal.SIGKILL)

    again, killed = until(lambda: ended_runs(server, "films", 2))
    assert (killed["status"], again["status"]) == ("FAILURE", "SUCCESS")
    assert (again["tags"]["dagster/parent_run_id"], again["tags"]["dagster/retry_number"]) == (killed["runId"], "1")
    assert is_made(paths, pipeline.SEQUENCES)
    assert pl.read_parquet(paths.images_manifest).height == 2


def test_a_backfill_beside_a_run_of_the_ui_waits_for_it_and_disturbs_nothing(server: Server, folder: Path) -> None:
    """Both want the only slot of the pool `downloads`."""
    environment = os.environ | {"DAGSTER_HOME": str(folder), "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    command = ["-c", COMMAND, "backfill", "songs", "--up-to", "sequences"]
    tags = [PARTITION | {"value": "songs"}]
    what = {"selector": PLACE | {"jobName": "prepare_data"}, "executionMetadata": {"tags": tags}}
    assert server.ask(LAUNCH, what=what)["launchRun"]["__typename"] == "LaunchRunSuccess"
    until((folder / "waits").exists)
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen([sys.executable, *command], cwd=folder, env=environment, **output) as beside:
        assert beside.stdout is not None
        assert any("waiting for other runs of the pool downloads" in line for line in beside.stdout)
        (folder / "go").touch()
        printed = beside.communicate()[0]
        assert beside.returncode == 0, printed
        assert "Traceback" not in printed
    assert {run["status"] for run in until(lambda: ended_runs(server, "songs"))} == {"SUCCESS"}
    assert "building" not in run_command(["python", *command], folder, environment).stdout
    paths = DatasetPaths.of(folder / "data", "songs")
    assert is_made(paths, pipeline.SEQUENCES)
    assert not list(paths.root.glob(".*.partial"))
