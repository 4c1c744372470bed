"""`dagster dev`, web server and daemon, in a DAGSTER_HOME of its own with the repository's own dagster.yaml."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import requests
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKSPACE = "load_from: [{python_module: {module_name: shop_definitions, location_name: pixrec}}]\n"
PLACE = {"repositoryLocationName": "pixrec", "repositoryName": "__repository__"}
RUNS = "{ runsOrError { ... on Runs { results { runId jobName status tags { key value } } } } }"


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def until(look: Callable[[], Any]) -> Any:
    """Return the first true answer; only the test's own timeout ends the wait."""
    while not (answer := look()):
        time.sleep(0.2)
    return answer


@dataclass(frozen=True)
class Server:
    """A web server that runs, and what it knows."""

    url: str

    def ask(self, query: str, **variables: Any) -> Any:
        question = {"query": query, "variables": variables}
        answer = requests.post(f"{self.url}/graphql", json=question, timeout=600).json()
        assert "errors" not in answer, answer
        return answer["data"]

    def runs(self, partition: str = "") -> list[dict[str, Any]]:
        """Runs, of one partition or of all, the newest first; each with its tags as a dictionary."""
        runs = self.ask(RUNS)["runsOrError"]["results"]
        named = [run | {"tags": {tag["key"]: tag["value"] for tag in run["tags"]}} for run in runs]
        return [run for run in named if partition in {"", run["tags"]["dagster/partition"]}]

    def is_up(self) -> bool:
        try:
            return bool(self.ask("{ instance { daemonHealth { allDaemonStatuses { healthy } } } }"))
        except requests.RequestException:
            return False


@contextmanager
def dagster_dev(folder: Path, definitions: str, settings: str, **monitoring: int) -> Iterator[Server]:
    """Serve `definitions`, and end all processes when done.

    Args:
        folder: project folder and DAGSTER_HOME.
        definitions: Python module with the code location.
        settings: content of pixrec.toml.
        monitoring: seconds that take the place of those in the section `run_monitoring` of dagster.yaml.
    """
    instance = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    instance["run_monitoring"] |= monitoring
    (folder / "dagster.yaml").write_text(yaml.safe_dump(instance))
    (folder / "shop_definitions.py").write_text(definitions)
    (folder / "workspace.yaml").write_text(WORKSPACE)
    (folder / "pixrec.toml").write_text(settings)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIXREC_", "DAGSTER_"))}
    environment |= {"DAGSTER_HOME": str(folder), "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    port = free_port()
    command = [str(Path(sys.executable).with_name("dagster")), "dev", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "dev.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    server = Server(f"http://127.0.0.1:{port}")
    try:
        until(server.is_up)
        yield server
    finally:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.send_signal(signal.SIGINT)
        _, alive = psutil.wait_procs(family, timeout=5)  # a code server takes its time, and nothing is lost with it
        for each in alive:
            each.kill()
        process.wait()
