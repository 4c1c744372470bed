"""Runs whose process has ended are marked as failed, and no others."""

import socket
import subprocess
import time
from collections.abc import Callable

import dagster as dg
import psutil
import pytest

from pixrec_assets import execution


@pytest.fixture
def status(instance: dg.DagsterInstance) -> Callable[[str], str]:
    """Record a started run of a process, given by its tag, and return the status that `fail_orphaned_runs` leaves."""

    def call(tag: str) -> str:
        tags = {execution.HOST: socket.gethostname(), execution.PROCESS: tag}
        run = dg.DagsterRun("job", status=dg.DagsterRunStatus.STARTED, tags=tags)
        instance.add_run(run)
        execution.fail_orphaned_runs(instance)
        return instance.get_run_by_id(run.run_id).status.value

    return call


def test_a_zombie_has_ended(status):
    with subprocess.Popen(["sleep", "60"]) as process:
        tag = execution._process_tag(psutil.Process(process.pid))
        assert status(tag) == "STARTED"
        process.kill()
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert status(tag) == "FAILURE"


def test_a_process_may_end_during_the_check(status, monkeypatch):
    monkeypatch.setattr(psutil, "pid_exists", lambda _: True)
    with subprocess.Popen(["true"]) as process:
        pass
    assert status(f"{process.pid} 1.00") == "FAILURE"


def test_another_process_with_the_same_number_is_not_the_one_of_the_run(status):
    assert status(f"{psutil.Process().pid} 1.00") == "FAILURE"


@pytest.mark.skipif(not psutil.LINUX, reason="the kernel of Linux counts start times from the boot")
def test_a_process_runs_on_when_the_clock_is_set(status, monkeypatch):
    tag, before = execution._process_tag(psutil.Process()), psutil.boot_time()
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: before + 3_600)
    assert status(tag) == "STARTED"
