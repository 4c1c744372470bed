"""One asset, one partition, one Dagster run in this process."""

import socket
from functools import cache
from pathlib import Path
from typing import Any, Final

import dagster as dg
import psutil

from pixrec_assets.definitions import ASSETS
from pixrec_assets.home import dagster_home
from pixrec_assets.running import Fault
from pixrec_assets.stage_asset import INTERRUPTED, asset_keys
from pixrec_core.stages import Stage, Work

HOST: Final = "pixrec/host"
PROCESS: Final = "pixrec/process"

#: Dagster prints each event of a run; the core's own progress lines say the same in fewer words.
QUIET: Final[dict[str, Any]] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def materialise(stage: Stage, work: Work) -> Fault | None:
    """Materialise a stage's asset in the partition of its place of work.

    Raises:
        KeyboardInterrupt: the run was interrupted.
    """
    result = dg.materialize(
        ASSETS,
        selection=asset_keys(stage),
        partition_key=stage.partition_key(work),
        resources={"settings": work.settings},
        instance=open_instance(dagster_home(work.settings)),
        run_config=QUIET,
        tags=_owner(psutil.Process()),
        raise_on_error=False,
    )
    return None if result.success else _fault(result)


@cache
def open_instance(home: Path) -> dg.DagsterInstance:
    """Opened once a process: it costs more than a small stage."""
    instance = dg.DagsterInstance.from_config(str(home))
    fail_orphaned_runs(instance)
    return instance


def _owner(process: psutil.Process) -> dict[str, str]:
    """Tags that tell which process a run lives in; the start time tells it from a later one of the same number."""
    return {HOST: socket.gethostname(), PROCESS: f"{process.pid} {process.create_time()}"}


def fail_orphaned_runs(instance: dg.DagsterInstance) -> None:
    """Mark runs of killed `pixrec` processes as failed and free their pool slots.

    Dagster leaves this to its daemon, and there need not be one: the next run would wait for a slot for ever.
    """
    here = {HOST: socket.gethostname()}
    for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED], tags=here)):
        pid = int(run.tags[PROCESS].split(" ")[0])
        if not psutil.pid_exists(pid) or _owner(psutil.Process(pid))[PROCESS] != run.tags[PROCESS]:
            instance.report_run_failed(run, "the process of this run was killed")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


def _fault(result: dg.ExecuteInProcessResult) -> Fault:
    failures = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    told = failures[0].user_failure_data if failures else None
    description = told.description if told else None
    if not failures or description == INTERRUPTED:  # between two steps, or within one
        raise KeyboardInterrupt
    if description:
        return Fault(description, True, result.run_id)
    error = failures[0].error and (failures[0].error.cause or failures[0].error)
    return Fault(error.to_string() if error else "no reason was recorded", False, result.run_id)
