"""Three jobs, since one run has one kind of partition: `prepare_data`, `train`, `evaluate`."""

from typing import Final

import dagster as dg

PREPARE_DATA: Final = dg.define_asset_job(
    "prepare_data",
    selection=dg.AssetSelection.groups("data"),
    executor_def=dg.in_process_executor,
    description="Raw files to validated sequences of one dataset.",
)

#: Each step in a process of its own: the retry policy of the checkpoint catches one that was killed for its memory.
TRAIN: Final = dg.define_asset_job(
    "train",
    selection=dg.AssetSelection.groups("model"),
    executor_def=dg.multiprocess_executor.configured({"max_concurrent": 1}),
    description="Sequences to rankings of one dataset and variant.",
)

EVALUATE: Final = dg.define_asset_job(
    "evaluate",
    selection=dg.AssetSelection.groups("evaluation"),
    executor_def=dg.in_process_executor,
    description="Baselines, metrics and the report of one dataset; needs the rankings of all its variants.",
)

JOBS: Final = (PREPARE_DATA, TRAIN, EVALUATE)
