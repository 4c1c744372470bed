"""`pixrec serve` as a process of its own."""

import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import requests

from pixrec_core.serving import server
from tests.core.shop import served_shop

TOML = """
[datasets.shop]
source = { kind = "sample", users = 58, items = 40 }
[datasets.empty]
source = { kind = "sample" }
"""
SERVE = [sys.executable, "-c", "from pixrec_assets.cli import main; main()", "serve"]
PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    (folder / "pixrec.toml").write_text(TOML)
    served_shop(folder, "text_only", baselines=["ease"])
    return folder


def start(folder, *arguments, **environment):
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(
        [*SERVE, *arguments], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for_address(process):
    """Return the address once a process accepts requests; the lines that say so come in any order."""
    address, ready, serves = "", False, False
    for line in process.stdout:
        if found := re.search(r"running on (http://\S+)", line):
            address = found[1]
        ready |= "startup complete" in line
        serves |= "shop: promotion 1 serves by" in line
        if address and ready:
            assert serves
            return address
    raise AssertionError(f"the server ended with {process.wait()}")


def wait_for_connection(address):
    """Wait until a worker listens: uvicorn says that startup is complete just before."""
    while True:
        with suppress(requests.ConnectionError):
            requests.get(f"{address}/health", timeout=600)
            return


@pytest.mark.parametrize(("host", "warns"), [("localhost", False), ("[/]", True)])
def test_a_server_that_others_reach_without_a_token_is_reported(pixrec, monkeypatch, host, warns):
    monkeypatch.setattr(server, "run_server", lambda *_: None)
    warning = f"warning: {host} can be reached by others, and no token is set (server.token)\n"
    assert pixrec("serve", "--host", host) == (0, "", warning if warns else "")


@pytest.mark.parametrize("workers", [1, 2])
def test_it_answers_until_a_signal(folder, workers):
    process = start(folder, "shop", "--port", "0", "--workers", str(workers))
    try:
        address = wait_for_address(process)
        wait_for_connection(address)
        if workers == 1:
            (command,) = re.findall(r"^\$ (curl .*)$", PAGE.read_text(), re.MULTILINE)
            arguments = shlex.split(command.replace("http://127.0.0.1:8000", address))
            answer = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
            assert '"dataset":"shop"' in answer
        answer = requests.post(f"{address}/datasets/shop/recommend", json={"items": []}, timeout=600)
        assert (answer.status_code, len(answer.json()["items"])) == (200, 10)
        metrics = requests.get(f"{address}/metrics", timeout=600).text
        assert re.search(r'pixrec_request_seconds_count{.*recommend",status="200".*} [12]\.0', metrics)
    finally:
        process.send_signal(signal.SIGTERM)
        output = process.communicate()[0]
    assert process.returncode in (0, -signal.SIGTERM), output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["empty"], "nothing of empty has been promoted"),
        (["empty", "--workers", "2"], "nothing of empty has been promoted"),
        (["shoop"], "did you mean `shop`?"),
    ],
)
def test_it_does_not_start_without_a_promotion(folder, arguments, message):
    process = start(folder, *arguments)
    output = process.communicate()[0]
    assert process.returncode == 1
    assert message in output
    assert "Traceback" not in output


def test_no_process_outlives_a_killed_supervisor(folder):
    with start(folder, "shop", "--port", "0", "--workers", "2") as process:
        wait_for_connection(wait_for_address(process))
        workers = [each for each in psutil.Process(process.pid).children() if "spawn_main" in " ".join(each.cmdline())]
        assert len(workers) == 2
        process.kill()
    psutil.wait_procs(workers)  # until the test's own timeout
