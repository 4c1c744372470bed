"""Three jobs, since one run has one kind of partition: `prepare_data`, `train`, `evaluate`.

A fourth, `train_jointly`, is there where settings name joint trainings.
"""

from typing import Final

import dagster as dg

from pixrec_assets.partitions import JOINT, SETTINGS

PREPARE_DATA: Final = dg.define_asset_job(
    "prepare_data",
    selection=dg.AssetSelection.groups("data"),
    executor_def=dg.in_process_executor,
    description="Raw files to validated sequences of one dataset.",
)

#: Each step in a process of its own: the retry policy of a checkpoint catches one that was killed for its memory.
ONE_BY_ONE: Final = dg.multiprocess_executor.configured({"max_concurrent": 1})

TRAIN_JOINTLY: Final = dg.define_asset_job(
    "train_jointly",
    selection=dg.AssetSelection.groups(JOINT),
    executor_def=ONE_BY_ONE,
    description="Sequences of several datasets to one checkpoint of a variant, for them to start from.",
)

TRAIN: Final = dg.define_asset_job(
    "train",
    selection=dg.AssetSelection.groups("model"),
    executor_def=ONE_BY_ONE,
    description="Sequences to rankings of one dataset and variant, which serves unless it is worse.",
)

EVALUATE: Final = dg.define_asset_job(
    "evaluate",
    selection=dg.AssetSelection.groups("evaluation"),
    executor_def=dg.in_process_executor,
    description="Baselines, metrics and the report of one dataset; needs the rankings of all its variants.",
)

JOBS: Final = (PREPARE_DATA, *([TRAIN_JOINTLY] if SETTINGS.joint else []), TRAIN, EVALUATE)
