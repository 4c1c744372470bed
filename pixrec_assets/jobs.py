"""Three jobs, since one run has partitions of one kind: `prepare_data`, `train`, `evaluate`; and the weekly schedule.

A fourth job, `train_jointly`, exists if settings name joint trainings.
"""

from typing import Final

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
    description="Baselines, blend, promotion, metrics and report of a dataset; needs the rankings of its variants.",
)

REFRESH: Final = dg.define_asset_job(
    "refresh",
    selection=dg.AssetSelection.groups("data") | dg.AssetSelection.assets("refreshed"),
    executor_def=dg.in_process_executor,
    description="Raw files to a promotion with the same weights: new orders, products and photos without a training.",
)

JOBS: Final = (PREPARE_DATA, *([TRAIN_JOINTLY] if SETTINGS.joint else []), TRAIN, EVALUATE, REFRESH)


@dg.schedule(
    job=PREPARE_DATA,
    cron_schedule="0 3 * * 1",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Prepares every dataset again on Mondays at 03:00 UTC, one run each.",
)
def weekly_data() -> list[dg.RunRequest]:
    """One run per dataset. The dataset as run key prevents a second run if the daemon died within a tick."""
    return [dg.RunRequest(dataset, partition_key=dataset) for dataset in DATASETS.get_partition_keys()]


@dg.schedule(
    job=REFRESH,
    cron_schedule="0 4 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Refreshes what serves of every dataset at 04:00 UTC, one run each.",
)
def daily_refresh() -> list[dg.RunRequest]:
    """One run per dataset."""
    return [dg.RunRequest(dataset, partition_key=dataset) for dataset in DATASETS.get_partition_keys()]
