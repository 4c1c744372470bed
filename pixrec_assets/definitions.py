"""All that Dagster loads: assets, their checks, jobs, the schedule and the sensors."""

from typing import Final

import dagster as dg

from pixrec_assets.assets import data, evaluation, model
from pixrec_assets.jobs import JOBS
from pixrec_assets.partitions import SETTINGS
from pixrec_assets.schedules import follow_data, weekly_data
from pixrec_assets.sensors import new_raw_files

ASSETS: Final = (
    *(data.raw, data.items, data.interactions, data.images, data.sequences),
    *([model.joint_checkpoint] if SETTINGS.joint else []),
    *(model.checkpoint, model.item_vectors, model.item_index, model.ranking, model.promoted),
    *(evaluation.baselines, evaluation.evaluation, evaluation.report),
)

defs = dg.Definitions(
    assets=ASSETS,
    jobs=JOBS,
    schedules=[weekly_data],
    sensors=[follow_data, new_raw_files],
    resources={"settings": SETTINGS},
)
