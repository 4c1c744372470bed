"""Runs one asset for one partition as one Dagster run in this process."""

import os
import socket
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

HOST: Final = "pixrec/host"
PROCESS: Final = "pixrec/process"

#: Dagster would print each event of a run; the core's progress lines say the same in fewer words.
QUIET: Final[dict[str, Any]] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def materialise(stage: Stage, work: Work, inputs: StageInputs | None = None) -> Failure | None:
    """Materialise a stage's asset for one partition; return why it failed, or None.

    Raises:
        KeyboardInterrupt: the run was interrupted.
    """
    try:
        result = _job_of(stage, work, inputs).execute_in_process(
            partition_key=stage.partition_key(work),
            instance=open_instance(dagster_home(work.settings)),
            run_config=QUIET,
            tags=_process_tags(psutil.Process()),
            raise_on_error=False,
        )
    except Exception as error:  # of Dagster's storage: SQLAlchemy's, or one of the file system
        data_dir, home = work.settings.data_dir, Path(os.environ.get(VARIABLE) or work.settings.data_dir)
        given = (data_dir, "data_dir") if home.is_relative_to(data_dir) else (home, VARIABLE)
        if (problem := disk_problem(error, *given)) is None:
            raise
        return Failure(f"Cannot record `{stage.name}` of {stage.partition_key(work)} in Dagster. {problem}.", True)
    return None if result.success else _describe_failure(result)


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


def _process_tags(process: psutil.Process) -> dict[str, str]:
    """Tags with the process of a run; the start time distinguishes processes that reuse a number."""
    return {HOST: socket.gethostname(), PROCESS: f"{process.pid} {process.create_time()}"}


def fail_orphaned_runs(instance: dg.DagsterInstance) -> None:
    """Mark runs of killed `pixrec` processes as failed and free their pool slots.

    Dagster's daemon would do it, but there may be none, and the next run would wait for a slot for ever.
    """
    here = {HOST: socket.gethostname()}
    for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED], tags=here)):
        pid = int(run.tags[PROCESS].split(" ")[0])
        if not psutil.pid_exists(pid) or _process_tags(psutil.Process(pid))[PROCESS] != run.tags[PROCESS]:
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
