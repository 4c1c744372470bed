"""A sensor on raw files in local folders: what is new there sets off just what depends on it."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import dagster as dg

from pixrec_assets.jobs import PREPARE_DATA
from pixrec_assets.stage_asset import asset_keys
from pixrec_core import files, pipeline
from pixrec_core.data import raw_files
from pixrec_core.errors import PixRecError
from pixrec_core.settings import Settings
from pixrec_core.stages import Stage, Work

#: Seconds that a file must have rested: one that is still being copied is left to a later tick.
SETTLED_S: Final = 60.0

#: What reads the metadata file, and what a change of the reviews alone leads to.
ALL_DATA: Final = (pipeline.RAW, pipeline.ITEMS, pipeline.INTERACTIONS, pipeline.IMAGES, pipeline.SEQUENCES)
OF_REVIEWS: Final = (pipeline.RAW, pipeline.INTERACTIONS, pipeline.SEQUENCES)

#: What is kept of a dataset's files between two ticks: signs (size and time) by path, and checksums in their order.
Seen = dict[str, Any]


@dg.sensor(
    name="new_raw_files",
    job=PREPARE_DATA,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Prepares a dataset whose files in a local folder got another content. Files are hashed only when "
    "their size or time changed, and taken up only once they have rested for a minute.",
)
def new_raw_files(context: dg.SensorEvaluationContext, settings: dg.ResourceParam[Settings]) -> dg.SensorResult:
    """One run a dataset with news; a dataset whose files cannot be found is told of and keeps no other waiting."""
    cursor: dict[str, Seen] = json.loads(context.cursor or "{}")
    requests, told = [], []
    for dataset in settings.datasets:
        try:
            request, cursor[dataset] = _look(Work(settings, dataset), cursor.get(dataset, {}))
        except (PixRecError, OSError) as error:
            told.append(f"{dataset}: {error}")
        else:
            requests += [request] if request else []
    for each in told:
        context.log.warning(each)
    skipped = None if requests else "; ".join(told) or "no file in a local folder has another content"
    return dg.SensorResult(requests, skip_reason=skipped, cursor=json.dumps(cursor))


def _look(work: Work, seen: Seen) -> tuple[dg.RunRequest | None, Seen]:
    """What a dataset's files ask for, and what to remember of them."""
    watched = raw_files.watched(work.dataset_settings.source, work.settings.root)
    signs = files.stat_snapshot(watched)
    if not watched or seen.get("signs") == signs or not _rested(watched):
        return None, seen
    sums = [files.sha256_file(path) for path in watched]
    now = {"signs": signs, "sums": sums}
    made = not seen and pipeline.RAW.is_current(work)
    if made or seen.get("sums") == sums:
        return None, now
    return _request(work, _dependents(seen.get("sums", ()), sums), signs), now


def _rested(watched: Sequence[Path]) -> bool:
    return all(path.exists() and time.time() - path.stat().st_mtime >= SETTLED_S for path in watched)


def _dependents(before: Sequence[str], now: Sequence[str]) -> Sequence[Stage]:
    """Stages that a change leads to; sums are of the reviews, then of the metadata."""
    return OF_REVIEWS if before and before[1:] == now[1:] else ALL_DATA


def _request(work: Work, stages: Sequence[Stage], signs: Mapping[str, Any]) -> dg.RunRequest:
    """The key holds the files' times: a content that comes back later is asked for again."""
    key = hashlib.sha256(json.dumps(signs, sort_keys=True).encode()).hexdigest()[:16]
    return dg.RunRequest(
        run_key=f"{work.dataset} {key}",
        partition_key=work.dataset,
        asset_selection=[asset for stage in stages for asset in asset_keys(stage)],
    )
