"""All that Dagster loads: assets with their checks, jobs, the schedule and the sensors."""

import dagster as dg

from pixrec_assets.assets import ASSETS
from pixrec_assets.jobs import JOBS, weekly_data
from pixrec_assets.online import online_metrics
from pixrec_assets.partitions import SETTINGS
from pixrec_assets.sensors import follow_data, new_raw_files

defs = dg.Definitions(
    assets=(*ASSETS, online_metrics),
    jobs=JOBS,
    schedules=[weekly_data],
    sensors=[follow_data, new_raw_files],
    resources={"settings": SETTINGS, "inputs": dg.ResourceDefinition.none_resource()},
)
