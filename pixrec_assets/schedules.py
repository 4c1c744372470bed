"""What starts runs by itself. All are shipped stopped; turn them on in the UI, with `dagster dev` running."""

from typing import Final

import dagster as dg

from pixrec_assets.jobs import PREPARE_DATA
from pixrec_assets.partitions import DATASETS, JOINT, SETTINGS


@dg.schedule(
    job=PREPARE_DATA,
    cron_schedule="0 3 * * 1",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Every dataset anew on Monday at 03:00 UTC, one run each.",
)
def weekly_data() -> list[dg.RunRequest]:
    """One run a dataset; its name as key keeps a daemon that died in a tick from asking twice."""
    return [dg.RunRequest(dataset, partition_key=dataset) for dataset in DATASETS.get_partition_keys()]


follow_data: Final = dg.AutomationConditionSensorDefinition(
    "follow_data",
    target=dg.AssetSelection.groups(*([JOINT] if SETTINGS.joint else []), "model", "evaluation"),
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Trains and evaluates what new data made stale, as each asset's automation condition says.",
)
