"""All that Dagster loads: assets with their checks, jobs, the schedule and the sensors."""

import sys
from types import TracebackType
from typing import Final

import click
import dagster as dg
from dagster._core.errors import DagsterInvalidSubsetError, DagsterUnknownPartitionError

from pixrec_assets.assets import ASSETS, SERVING_ASSETS
from pixrec_assets.jobs import IN_PROCESSES, JOBS, SCHEDULES
from pixrec_assets.partitions import SETTINGS
from pixrec_assets.sensors import ALERTS, follow_data, new_raw_files

#: What `dg launch` raises for a selection or partition that does not exist.
WRONG_SELECTION: Final = (DagsterInvalidSubsetError, DagsterUnknownPartitionError)


def report_wrong_selection(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Print a message in place of a traceback where `dg launch` was called with a wrong selection or partition."""
    if not isinstance(error, WRONG_SELECTION):
        sys.__excepthook__(kind, error, traceback)
        return
    groups = "groups `data` and `evaluation` with --partition DATASET, group `model` with --partition 'DATASET|VARIANT'"
    click.echo(f"{error}\nLaunch {groups}; `dg list defs` lists all assets.", err=True)


sys.excepthook = report_wrong_selection  # `dg launch` loads this module into its own process


def create_definitions(executor: dg.ExecutorDefinition | None = None) -> dg.Definitions:
    """Return all definitions; `executor` runs assets that are materialised without a job."""
    return dg.Definitions(
        assets=(*ASSETS, *SERVING_ASSETS),
        jobs=JOBS,
        schedules=SCHEDULES,
        sensors=[follow_data, new_raw_files, *ALERTS],
        executor=executor,
        resources={"settings": SETTINGS, "inputs": dg.ResourceDefinition.none_resource()},
    )


defs = create_definitions(IN_PROCESSES)
