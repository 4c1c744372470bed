"""Jobs and schedules. A run has partitions of one kind, so training takes three: `prepare_data`, `train`, `evaluate`.

`refresh` needs no training; `train_jointly` exists if settings name joint trainings.
"""

from typing import Any, Final

import dagster as dg

from pixrec_assets.partitions import DATASETS, JOINT, SETTINGS

PREPARE_DATA: Final = dg.define_asset_job(
    "prepare_data",
    selection=dg.AssetSelection.groups("data"),
    executor_def=dg.in_process_executor,
    description="Raw files to validated sequences of one dataset.",
)

#: Each step runs in its own process: the retry policy of a checkpoint then catches a step killed for its memory.
ONE_BY_ONE: Final = dg.multiprocess_executor.configured({"max_concurrent": 1})

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

JOBS: Final = (PREPARE_DATA, *([TRAIN_JOINTLY] if SETTINGS.joint else []), TRAIN, EVALUATE, REFRESH)


def _per_dataset(name: str, job: Any, cron: str, description: str) -> dg.ScheduleDefinition:
    """Return a schedule, stopped at first, that requests one run of a job per dataset.

    The dataset as run key prevents a second run if the daemon died within a tick.
    """

    @dg.schedule(
        name=name, job=job, cron_schedule=cron, execution_timezone="UTC", description=description,
        default_status=dg.DefaultScheduleStatus.STOPPED,
    )  # fmt: skip
    def request_runs() -> list[dg.RunRequest]:
        return [dg.RunRequest(dataset, partition_key=dataset) for dataset in DATASETS.get_partition_keys()]

    return request_runs


SCHEDULES: Final = (
    _per_dataset("weekly_data", PREPARE_DATA, "0 3 * * 1", "Prepares every dataset again on Mondays at 03:00 UTC."),
    _per_dataset("daily_refresh", REFRESH, "0 4 * * *", "Refreshes what serves of every dataset at 04:00 UTC."),
)
