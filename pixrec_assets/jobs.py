"""Jobs and schedules. A run has partitions of one kind, so training takes three: `prepare_data`, `train`, `evaluate`.

`refresh` needs no training; `train_jointly` exists if settings name joint trainings.
"""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import dagster as dg
from pydantic import Field

from pixrec_assets.partitions import DATASETS, JOINT, SETTINGS
from pixrec_assets.stage_asset import raising_failures
from pixrec_core import pipeline
from pixrec_core.errors import SettingsError
from pixrec_core.stages import Work

PREPARE_DATA: Final = dg.define_asset_job(
    "prepare_data",
    selection=dg.AssetSelection.groups("data"),
    executor_def=dg.in_process_executor,
    description="Raw files to validated sequences of one dataset.",
)

#: Each step runs in its own process: the retry policy of a checkpoint then catches a step killed for its memory. The
#: processes fork from one that has imported the definitions, which takes seconds.
IN_PROCESSES: Final = dg.multiprocess_executor.configured({"start_method": {"forkserver": {}}})
ONE_BY_ONE: Final = dg.multiprocess_executor.configured({"max_concurrent": 1, "start_method": {"forkserver": {}}})

TRAIN_JOINTLY: Final = dg.define_asset_job(
    "train_jointly",
    selection=dg.AssetSelection.groups(JOINT),
    executor_def=ONE_BY_ONE,
    description="Sequences of several datasets to one checkpoint per variant, for them to start from.",
)

TRAIN: Final = dg.define_asset_job(
    "train",
    selection=dg.AssetSelection.groups("model"),
    executor_def=ONE_BY_ONE,
    description="Sequences to rankings of one dataset and variant.",
)

EVALUATE: Final = dg.define_asset_job(
    "evaluate",
    selection=dg.AssetSelection.groups("evaluation"),
    executor_def=dg.in_process_executor,
    description="Baselines, blend, promotion, metrics, report and refit of a dataset; needs all rankings.",
)

REFRESH: Final = dg.define_asset_job(
    "refresh",
    selection=dg.AssetSelection.groups("data") | dg.AssetSelection.assets("refreshed"),
    executor_def=dg.in_process_executor,
    description="Raw files to a promotion with the same weights: new orders, products and photos without a training.",
)


class Rollback(dg.Config):
    """Config of the job `rollback`."""

    promotion: int = Field(description="number of the promotion to serve; `pixrec rollback DATASET` lists them")


@dg.op(required_resource_keys={"settings"})
def restore_promotion(context: dg.OpExecutionContext, config: Rollback) -> None:
    """Let an earlier promotion of the dataset serve again."""
    work = Work(context.resources.settings, context.partition_key)
    with raising_failures(work):
        stats = pipeline.rollback(work, config.promotion)
    context.log.info(f"{stats['method']} serves as promotion {config.promotion}; trained {stats['trained_at']}")


@dg.job(partitions_def=DATASETS, executor_def=dg.in_process_executor)
def rollback() -> None:
    """An earlier promotion serves again: the one that the launchpad names."""
    restore_promotion()


JOBS: Final[tuple[Any, ...]] = (
    PREPARE_DATA,
    *([TRAIN_JOINTLY] if SETTINGS.joint else []),
    TRAIN,
    EVALUATE,
    REFRESH,
    rollback,
)

#: A run in one of these states does not change any more.
FINISHED_STATUSES: Final = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)


def _per_dataset(name: str, job: Any, setting: str, description: str) -> dg.ScheduleDefinition:
    """Return a schedule, stopped at first, that requests one run of a job per dataset, at the times of a setting.

    The dataset as run key prevents a second run if the daemon died within a tick.

    Raises:
        SettingsError: the setting is no cron schedule.
    """
    cron = getattr(SETTINGS.dagster, setting)

    def request_runs() -> list[dg.RunRequest]:
        return [dg.RunRequest(dataset, partition_key=dataset) for dataset in DATASETS.get_partition_keys()]

    try:
        return dg.schedule(
            name=name, job=job, cron_schedule=cron, execution_timezone=SETTINGS.dagster.time_zone,
            description=description, default_status=dg.DefaultScheduleStatus.STOPPED,
        )(request_runs)  # fmt: skip
    except dg.DagsterInvalidDefinitionError as error:
        raise SettingsError(
            f"dagster.{setting} is {cron!r}, which is no cron schedule such as `0 4 * * *`; correct it in pixrec.toml"
        ) from error


@dg.op(description="Deletes runs that ended longer ago than `dagster.keep_runs_days`, with their events and logs.")
def delete_runs(context: dg.OpExecutionContext) -> int:
    """Return the number of deleted runs. Materialisations in them leave the history of the UI; artefacts stay."""
    days = SETTINGS.dagster.keep_runs_days
    assert days, "only the schedule of this setting runs this"
    before = datetime.now(UTC) - timedelta(days=days)
    old = dg.RunsFilter(statuses=list(FINISHED_STATUSES), updated_before=before)
    runs = context.instance.get_run_ids(old)
    for run in runs:
        context.instance.delete_run(run)
    context.log.info(f"deleted {len(runs):,} runs that ended before {before:%Y-%m-%d %H:%M} UTC")
    return len(runs)


@dg.job(executor_def=dg.in_process_executor)
def delete_old_runs() -> None:
    """Keep Dagster's storage small."""
    delete_runs()


SCHEDULES: Final = (
    _per_dataset(
        "weekly_data",
        PREPARE_DATA,
        "retrain",
        "Prepares every dataset again; `follow_data` then trains what new data made stale.",
    ),
    _per_dataset("daily_refresh", REFRESH, "refresh", "Refreshes what serves of every dataset."),
    *(
        [dg.ScheduleDefinition(name="delete_old_runs_daily", job=delete_old_runs, cron_schedule="0 2 * * *")]
        if SETTINGS.dagster.keep_runs_days
        else []
    ),
)
