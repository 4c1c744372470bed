"""One asset, one partition, one Dagster run in this process."""

from functools import cache
from pathlib import Path
from typing import Any, Final

import dagster as dg

from pixrec_assets.definitions import ASSETS
from pixrec_assets.home import dagster_home
from pixrec_assets.running import Failed
from pixrec_assets.stage_asset import INTERRUPTED, asset_keys
from pixrec_core.stages import Stage, Work

#: Dagster prints each event of a run; the core's own progress lines say the same in fewer words.
QUIET: Final[dict[str, Any]] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def materialise(stage: Stage, work: Work, partition: str) -> Failed | None:
    """Materialise a stage's asset.

    Raises:
        KeyboardInterrupt: the run was interrupted.
    """
    result = dg.materialize(
        ASSETS,
        selection=asset_keys(stage),
        partition_key=partition,
        resources={"settings": work.settings},
        instance=open_instance(dagster_home(work.settings)),
        run_config=QUIET,
        raise_on_error=False,
    )
    return None if result.success else _failure(stage, work, result)


@cache
def open_instance(home: Path) -> dg.DagsterInstance:
    """Opened once a process: it costs more than a small stage."""
    return dg.DagsterInstance.from_config(str(home))


def _failure(stage: Stage, work: Work, result: dg.ExecuteInProcessResult) -> Failed:
    failures = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    told = failures[0].user_failure_data if failures else None
    description = told.description if told else None
    if not failures or description == INTERRUPTED:  # between two steps, or within one
        raise KeyboardInterrupt
    if description:
        return Failed(stage, work, description, True, result.run_id)
    error = failures[0].error and (failures[0].error.cause or failures[0].error)
    return Failed(stage, work, error.to_string() if error else "no reason was recorded", False, result.run_id)
