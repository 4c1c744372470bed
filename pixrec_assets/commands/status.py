"""`pixrec status`."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click
from rich.markup import escape
from rich.table import Table

from pixrec_assets import running
from pixrec_assets.headline import DECIDING, headline
from pixrec_assets.terminal import out
from pixrec_core.paths import DatasetPaths
from pixrec_core.settings import load_settings
from pixrec_core.stages import Stage, Work

EXAMPLES: Final = """\b
Examples:
  pixrec status
  pixrec status --dataset books
"""

#: The figure of each stage that is worth a glance, from the stats in its stamp.
FIGURES: Final = {
    "raw": "{reviews_bytes:,} + {metadata_bytes:,} bytes",
    "items": "{profile[rows]:,} items",
    "interactions": "{profile[rows]:,} interactions",
    "images": "{ok:,} of {urls:,} photos",
    "sequences": "{profile[users]:,} users, {profile[items]:,} items",
    "baselines": "{users:,} users",
    "joint_checkpoint": "validation NDCG@10 {validation_ndcg@10:.4f}",
    "checkpoint": "validation NDCG@10 {validation_ndcg@10:.4f}",
    "item_vectors": "{items:,} vectors of {dimension}",
    "item_index": "{kind}, index recall@10 {recall@10:.3f}",
    "ranking": "{users:,} users",
    "evaluation": "{users:,} users",
}


@click.command(epilog=EXAMPLES)
@click.option("--dataset", "names", multiple=True, help="Only this dataset or joint training (repeatable).")
def status(names: tuple[str, ...]) -> None:
    """What has been made, when, whether it is still current, and how good it is.

    Stale is what was made from inputs, settings or code that have changed since; `pixrec run` makes
    it again. Times are UTC.
    """
    settings = load_settings()
    for name in names or (*settings.joint, *settings.datasets):
        table = Table("artefact", "partition", "made", "state", "figure", title=name, title_justify="left")
        for stage, work in running.planned(settings, name, (), ()):
            if work.dataset == name:
                table.add_row(stage.name, escape(stage.partition_key(work)), *_state(stage, work))
        out.print(table)
        _show_best(DatasetPaths.of(settings.data_dir, name))


def _state(stage: Stage, work: Work) -> tuple[str, str, str]:
    stamp = stage.stamp(work)
    if stamp is None:
        return "-", "[dim]not made[/]", ""
    if not stage.is_current(work):
        state = "[yellow]stale[/]"
    else:
        state = "[green]current[/]" if stamp["stats"].get("promoted", True) else "[yellow]refused[/]"
    made = datetime.fromisoformat(stamp["finished_at"])
    return f"{made:%Y-%m-%d %H:%M} ({age(datetime.now(UTC) - made)})", state, figure(stage.name, stamp["stats"])


def age(passed: timedelta) -> str:
    """Days, hours or minutes, whichever is the first to be one or more."""
    units = {"d": 86_400, "h": 3_600, "min": 60}
    unit, seconds = next(((u, s) for u, s in units.items() if passed.total_seconds() >= s), ("min", 60))
    return f"{int(passed.total_seconds() // seconds)} {unit} ago"


def figure(stage: str, stats: dict[str, Any]) -> str:
    """A stage's figure in words; none where an earlier version of the stage did not count it."""
    try:
        return FIGURES.get(stage, "").format(**stats)
    except (KeyError, TypeError, ValueError):
        return ""


def _show_best(paths: DatasetPaths) -> None:
    if paths.metrics.exists() and (measured := headline(paths)):
        method, metrics = list(measured.items())[-1]
        out.print(f"best {DECIDING}: {metrics.get(DECIDING, 0.0):.4f} by {escape(method)}\n")
