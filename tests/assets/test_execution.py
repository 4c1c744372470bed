"""Runs whose process has ended are marked as failed, and no others."""

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import dagster as dg
import psutil
import pytest

from pixrec_assets import execution
from pixrec_assets.plan import plan_dataset
from pixrec_assets.workers import Failure
from pixrec_core import pipeline
from pixrec_core.stages import Work


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


@pytest.fixture
def taken(tmp_path) -> Iterator[dg.DagsterInstance]:
    """An instance in files, in which another run has the only slot of the pool `gpu`."""
    (tmp_path / "home").mkdir()
    concurrency = {"pools": {"granularity": "op", "default_limit": 1}}
    with dg.DagsterInstance.local_temp(str(tmp_path / "home"), overrides={"concurrency": concurrency}) as instance:
        instance.event_log_storage.initialize_concurrency_limit_to_default("gpu")
        assert instance.event_log_storage.claim_concurrency_slot("gpu", "another run", "step").is_claimed
        yield instance


def train(settings, instance, monkeypatch) -> Failure | None:
    work = Work(settings, "sample", "text_only")
    for run in plan_dataset(settings, "sample", up_to="item_features"):
        run.stage.materialise(run.work)
    monkeypatch.setattr(execution, "open_instance", lambda _: instance)
    return execution.materialise(pipeline.CHECKPOINT, work, pipeline.CHECKPOINT.inspect_inputs(work))


def test_a_stage_waits_until_its_pool_has_a_free_slot(settings, taken, monkeypatch, caplog):
    """The slot is freed in the second sleep; until then no run is created."""
    caplog.set_level("INFO", "pixrec_core")
    sleeps = []

    def sleep(seconds: float) -> None:
        sleeps.append(taken.get_runs_count())
        if len(sleeps) == 2:
            taken.event_log_storage.free_concurrency_slots_for_run("another run")

    monkeypatch.setattr(execution, "time", SimpleNamespace(sleep=sleep))
    assert train(settings, taken, monkeypatch) is None
    assert sleeps == [0, 0]
    assert [r.message for r in caplog.records if "waiting" in r.message] == ["waiting for other runs of the pool gpu"]


def test_what_another_run_built_meanwhile_is_not_built_again(settings, taken, monkeypatch):
    work, built = Work(settings, "sample", "text_only"), []

    def sleep(seconds: float) -> None:
        pipeline.CHECKPOINT.materialise(work, on_epoch=lambda _: None)
        built.append(pipeline.CHECKPOINT.stamp_path(work).stat().st_mtime_ns)
        taken.event_log_storage.free_concurrency_slots_for_run("another run")

    monkeypatch.setattr(execution, "time", SimpleNamespace(sleep=sleep))
    assert train(settings, taken, monkeypatch) is None
    assert built == [pipeline.CHECKPOINT.stamp_path(work).stat().st_mtime_ns]


def test_a_signal_ends_the_wait_for_a_pool(settings, taken, monkeypatch):
    monkeypatch.setattr(execution, "time", SimpleNamespace(sleep=lambda _: signal.raise_signal(signal.SIGINT)))
    with pytest.raises(KeyboardInterrupt):
        train(settings, taken, monkeypatch)
    assert taken.get_runs_count() == 0
