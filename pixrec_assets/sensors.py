"""Sensors: one prepares a dataset whose raw files in a local folder changed, one trains what new data made stale."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import dagster as dg

from pixrec_assets.jobs import PREPARE_DATA
from pixrec_assets.partitions import JOINT, SETTINGS
from pixrec_assets.stage_asset import asset_keys
from pixrec_core import files, pipeline
from pixrec_core.data import raw_files
from pixrec_core.errors import PixRecError
from pixrec_core.settings import Settings
from pixrec_core.stages import Stage, Work

#: Seconds since the last change of a file; a file that may still be copied waits for a later tick.
SETTLED_S: Final = 60.0

#: Stages that read the metadata file, and stages affected by a change of the reviews alone.
ALL_DATA: Final = (pipeline.RAW, pipeline.ITEMS, pipeline.INTERACTIONS, pipeline.IMAGES, pipeline.SEQUENCES)
AFTER_REVIEWS: Final = (pipeline.RAW, pipeline.INTERACTIONS, pipeline.SEQUENCES)

#: State of a dataset's files between two ticks: `stats` (size and time) by path, and `checksums` in the order of files.
Seen = dict[str, Any]

follow_data: Final = dg.AutomationConditionSensorDefinition(
    "follow_data",
    target=dg.AssetSelection.groups(*([JOINT] if SETTINGS.joint else []), "model", "evaluation"),
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Trains and evaluates what new data made stale, following the automation condition of each asset.",
)


@dg.sensor(
    name="new_raw_files",
    job=PREPARE_DATA,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Prepares a dataset whose files in a local folder have new content. Files are hashed only if their "
    "size or time changed, and used only after a minute without changes.",
)
def new_raw_files(context: dg.SensorEvaluationContext, settings: dg.ResourceParam[Settings]) -> dg.SensorResult:
    """Request one run per changed dataset. Missing files of one dataset are logged and do not hold up the others."""
    cursor: dict[str, Seen] = json.loads(context.cursor or "{}")
    requests, problems = [], []
    for dataset in settings.datasets:
        try:
            request, cursor[dataset] = _inspect_files(Work(settings, dataset), cursor.get(dataset, {}))
        except (PixRecError, OSError) as error:
            problems.append(f"{dataset}: {error}")
        else:
            requests += [request] if request else []
    for problem in problems:
        context.log.warning(problem)
    skipped = None if requests else "; ".join(problems) or "no file in a local folder has new content"
    return dg.SensorResult(requests, skip_reason=skipped, cursor=json.dumps(cursor))


def _inspect_files(work: Work, seen: Seen) -> tuple[dg.RunRequest | None, Seen]:
    """Return the run that a dataset's files need, if any, and the state to keep for the next tick."""
    watched = raw_files.watched(work.dataset_settings.source, work.settings.root)
    stats = files.stat_snapshot(watched)
    if not watched or seen.get("stats") == stats or not _are_settled(watched):
        return None, seen
    checksums = [files.sha256_file(path) for path in watched]
    state = {"stats": stats, "checksums": checksums}
    was_built_before = not seen and pipeline.RAW.is_current(work)
    if was_built_before or seen.get("checksums") == checksums:
        return None, state
    return _request_run(work, _stages_after(seen.get("checksums", ()), checksums), stats), state


def _are_settled(watched: Sequence[Path]) -> bool:
    """Whether no file was changed just now; one with a time in the future was not, but the clock has gone back."""
    return all(path.exists() and abs(time.time() - path.stat().st_mtime) >= SETTLED_S for path in watched)


def _stages_after(before: Sequence[str], now: Sequence[str]) -> Sequence[Stage]:
    """Stages affected by a change; the first checksum is of the reviews, the others are of the metadata."""
    return AFTER_REVIEWS if before and before[1:] == now[1:] else ALL_DATA


def _request_run(work: Work, stages: Sequence[Stage], stats: Mapping[str, Any]) -> dg.RunRequest:
    """The run key contains the files' times, so content that returns later is requested again."""
    key = hashlib.sha256(json.dumps(stats, sort_keys=True).encode()).hexdigest()[:16]
    return dg.RunRequest(
        run_key=f"{work.dataset} {key}",
        partition_key=work.dataset,
        asset_selection=[asset for stage in stages for asset in asset_keys(stage)],
    )
