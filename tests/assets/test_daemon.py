"""`dagster dev` with its daemon and web server: a sensor that is turned on makes a run, from the repository's own
dagster.yaml, in a DAGSTER_HOME of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from pixrec_core import pipeline
from pixrec_core.settings import load_settings
from pixrec_core.stages import Work

ROOT = Path(__file__).resolve().parents[2]
DEFINITIONS = """
from tests.assets import fake_stages
fake_stages.install()
from pixrec_assets.definitions import defs
"""
WORKSPACE = "load_from: [{python_module: {module_name: shop_definitions, location_name: pixrec}}]\n"
TOML = '[datasets.books.source]\nkind = "amazon_2023"\nfolder = "books"\n'
PLACE = {"repositoryLocationName": "pixrec", "repositoryName": "__repository__"}
DEADLINE_S = 240  # on a machine with much else to do; alone it takes some 40 s in all


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def until(look: Callable[[], Any]) -> Any:
    """The first true answer."""
    deadline = time.monotonic() + DEADLINE_S
    while not (answer := look()):
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.2)
    return answer


@contextmanager
def dagster_dev(folder: Path, port: int) -> Iterator[None]:
    """The web server and the daemon, as `dagster dev` starts them; all of their processes are ended."""
    environment = os.environ | {"DAGSTER_HOME": str(folder), "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    command = [str(Path(sys.executable).with_name("dagster")), "dev", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "dev.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        yield
    finally:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.send_signal(signal.SIGINT)
        _, alive = psutil.wait_procs(family, timeout=20)
        for each in alive:
            each.kill()
        process.wait()


@pytest.fixture
def graphql(project: Path) -> Iterator[Callable[..., Any]]:
    (project / "shop_definitions.py").write_text(DEFINITIONS)
    (project / "workspace.yaml").write_text(WORKSPACE)
    (project / "dagster.yaml").write_bytes((ROOT / "dagster.yaml").read_bytes())
    (project / "pixrec.toml").write_text(TOML)
    port = free_port()

    def ask(query: str, **variables: Any) -> Any:
        url, question = f"http://127.0.0.1:{port}/graphql", {"query": query, "variables": variables}
        answer = requests.post(url, json=question, timeout=20).json()
        assert "errors" not in answer, answer
        return answer["data"]

    def is_up() -> bool:
        try:
            return bool(ask("{ instance { daemonHealth { allDaemonStatuses { healthy } } } }"))
        except requests.RequestException:
            return False

    with dagster_dev(project, port):
        until(is_up)
        yield ask


START_SENSOR = """mutation ($at: SensorSelector!) { startSensor(sensorSelector: $at) {
    __typename ... on Sensor { sensorState { id status } } ... on PythonError { message } } }"""
STOP_SENSOR = """mutation ($id: String!) { stopSensor(id: $id) {
    __typename ... on StopSensorMutationResult { instigationState { status } } } }"""
START_SCHEDULE = """mutation ($at: ScheduleSelector!) { startSchedule(scheduleSelector: $at) {
    ... on ScheduleStateResult { scheduleState { id status nextTick { timestamp } } } } }"""
STOP_SCHEDULE = """mutation ($id: String!) { stopRunningSchedule(id: $id) {
    ... on ScheduleStateResult { scheduleState { status } } } }"""
RUNS = "{ runsOrError { ... on Runs { results { jobName status tags { key value } } } } }"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_schedule_and_the_sensor_can_be_turned_on_and_a_new_file_makes_a_run(graphql, project):
    schedule = graphql(START_SCHEDULE, at=PLACE | {"scheduleName": "weekly_data"})["startSchedule"]["scheduleState"]
    assert schedule["status"] == "RUNNING"
    assert time.gmtime(schedule["nextTick"]["timestamp"])[3:7] == (3, 0, 0, 0), "Monday at 03:00 UTC"
    stopped = graphql(STOP_SCHEDULE, id=schedule["id"])["stopRunningSchedule"]
    assert stopped["scheduleState"]["status"] == "STOPPED"
    assert graphql(RUNS)["runsOrError"]["results"] == []

    (project / "books").mkdir()
    for name in ("reviews.jsonl", "meta.jsonl"):
        (project / "books" / name).write_text("{}\n")
        os.utime(project / "books" / name, (1e9, 1e9))
    sensor = graphql(START_SENSOR, at=PLACE | {"sensorName": "new_raw_files"})["startSensor"]["sensorState"]
    assert sensor["status"] == "RUNNING"

    def finished() -> dict[str, Any] | None:
        runs = graphql(RUNS)["runsOrError"]["results"]
        assert all(run["status"] != "FAILURE" for run in runs)
        return next((run for run in runs if run["status"] == "SUCCESS"), None)

    run = until(finished)
    tags = {tag["key"]: tag["value"] for tag in run["tags"]}
    assert run["jobName"] == "prepare_data"
    assert (tags["dagster/partition"], tags["dagster/sensor_name"]) == ("books", "new_raw_files")
    assert pipeline.SEQUENCES.is_current(Work(load_settings(), "books"))
    assert graphql(STOP_SENSOR, id=sensor["id"])["stopSensor"]["instigationState"]["status"] == "STOPPED"
