"""Runs one asset for one partition as one Dagster run in this process."""

import logging
import os
import socket
import time
from functools import cache
from pathlib import Path
from typing import Any, Final

import dagster as dg
import psutil
from filelock import FileLock

from pixrec_assets.assets import ASSETS
from pixrec_assets.home import VARIABLE, dagster_home
from pixrec_assets.stage_asset import INTERRUPTED, asset_keys
from pixrec_assets.workers import Failure
from pixrec_core.stages import Stage, StageInputs, Work, disk_problem

log = logging.getLogger("pixrec_core.execution")  # whose lines are shown

HOST: Final = "pixrec/host"
PROCESS: Final = "pixrec/process"
POLL_S: Final = 1.0

#: Dagster would print each event of a run; the core's progress lines say the same in fewer words.
QUIET: Final[dict[str, Any]] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def materialise(stage: Stage, work: Work, inputs: StageInputs | None = None) -> Failure | None:
    """Materialise a stage's asset for one partition; return why it failed, or None.

    Raises:
        KeyboardInterrupt: the run was interrupted.
    """
    try:
        job, instance = _job_of(stage, work, inputs), open_instance(dagster_home(work.settings))
        _wait_for_pools(job, instance)
        result = job.execute_in_process(
            partition_key=stage.partition_key(work),
            instance=instance,
            run_config=QUIET,
            tags={HOST: socket.gethostname(), PROCESS: _process_tag(psutil.Process())},
            raise_on_error=False,
        )
    except Exception as error:  # of Dagster's storage: SQLAlchemy's, or one of the file system
        data_dir, home = work.settings.data_dir, Path(os.environ.get(VARIABLE) or work.settings.data_dir)
        given = (data_dir, "data_dir") if home.is_relative_to(data_dir) else (home, VARIABLE)
        if (problem := disk_problem(error, *given)) is None:
            raise
        return Failure(f"Cannot record `{stage.name}` of {stage.partition_key(work)} in Dagster. {problem}.", True)
    return None if result.success else _describe_failure(result)


def _wait_for_pools(job: dg.JobDefinition, instance: dg.DagsterInstance) -> None:
    """Wait while other runs have all slots of a pool that the job needs.

    Dagster would wait within the run: in a loop that keeps a core busy and that no signal ends.
    """
    storage, waited = instance.event_log_storage, False
    pools = sorted({pool for node in job.all_node_defs for pool in node.pools})
    while any(
        info.slot_count and len(info.claimed_slots) >= info.slot_count
        for info in map(storage.get_concurrency_info, pools)
    ):
        if not waited:
            log.info("waiting for other runs of the pool %s", " and ".join(pools))
            waited = True
        time.sleep(POLL_S)
        fail_orphaned_runs(instance)


def _job_of(stage: Stage, work: Work, inputs: StageInputs | None) -> dg.JobDefinition:
    """The job of one asset, whose name is that of the run in the UI."""
    name = f"pixrec_{stage.name}"
    return dg.Definitions(
        assets=ASSETS,
        jobs=[dg.define_asset_job(name, selection=asset_keys(stage))],
        resources={"settings": work.settings, "inputs": inputs},
    ).resolve_job_def(name)


@cache
def open_instance(home: Path) -> dg.DagsterInstance:
    """Open the Dagster instance, once per process: it takes longer than a small stage.

    One process at a time: two that create Dagster's tables at once collide.
    """
    with FileLock(home / "pixrec.lock"):
        instance = dg.DagsterInstance.from_config(str(home))
        instance.get_runs(limit=1)
    fail_orphaned_runs(instance)
    return instance


def _process_tag(process: psutil.Process) -> str:
    """Return the number and the start time of a process; a later process may have the same number.

    On Linux psutil adds the kernel's start time, seconds since the boot, to a time of the boot that follows the clock.
    macOS records the clock at the start.
    """
    started = process.create_time() - (psutil.boot_time() if psutil.LINUX else 0)
    return f"{process.pid} {started:.2f}"


def _is_running(tag: str) -> bool:
    """Return whether the process of a tag runs; a zombie does not."""
    try:
        process = psutil.Process(int(tag.split(" ", maxsplit=1)[0]))
        return _process_tag(process) == tag and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def fail_orphaned_runs(instance: dg.DagsterInstance) -> None:
    """Mark runs of killed `pixrec` processes as failed and free their pool slots.

    Dagster's daemon would do it, but there may be none, and the next run would wait for a slot for ever.
    """
    here = {HOST: socket.gethostname()}
    for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED], tags=here)):
        if not _is_running(run.tags[PROCESS]):
            instance.report_run_failed(run, "the process of this run was killed")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


def _describe_failure(result: dg.ExecuteInProcessResult) -> Failure:
    failures = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    data = failures[0].user_failure_data if failures else None
    description = data.description if data else None
    if not failures or description == INTERRUPTED:  # interrupted between two steps, or within one
        raise KeyboardInterrupt
    if description:
        return Failure(description, True, result.run_id)
    error = failures[0].error and (failures[0].error.cause or failures[0].error)
    return Failure(error.to_string() if error else "no reason was recorded", False, result.run_id)
