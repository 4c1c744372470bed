"""`pixrec status`."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click
from rich.markup import escape
from rich.table import Table

from pixrec_assets.commands.options import dataset_arguments
from pixrec_assets.headline import DECIDING, headline, served_method
from pixrec_assets.plan import plan_dataset
from pixrec_assets.terminal import out
from pixrec_core import pipeline
from pixrec_core.settings import load_settings
from pixrec_core.stages import StageRun, Work

EXAMPLES: Final = """\b
Examples:
  pixrec status
  pixrec status books
"""

#: The main figure of each stage, from the statistics in its stamp.
FIGURES: Final = {
    "raw": "{reviews_bytes:,} + {metadata_bytes:,} bytes",
    "items": "{profile[rows]:,} items",
    "interactions": "{profile[rows]:,} interactions",
    "images": "{ok:,} of {urls:,} photos",
    "sequences": "{profile[users]:,} users ({profile[test_users]:,} tested), {profile[items]:,} items",
    "baselines": "{users:,} users",
    "joint_checkpoint": "validation NDCG@10 {validation_ndcg@10:.4f}",
    "checkpoint": "validation NDCG@10 {validation_ndcg@10:.4f}",
    "item_vectors": "{items:,} vectors of {dimension}",
    "item_index": "{kind}, index recall@10 {recall@10:.3f}",
    "ranking": "{users:,} users",
    "blend": "{summary}",
    "promoted": "{serves} serves",
    "evaluation": "{users:,} users",
}


@click.command(epilog=EXAMPLES)
@dataset_arguments
def status(datasets: tuple[str, ...]) -> None:
    """Show the artefacts of each DATASET: when they were built, whether they are current, and their main figure.

    An artefact is stale if its inputs, settings or code have changed since; `pixrec run` builds it again. Without a
    DATASET, all datasets and joint trainings are shown. Times are UTC.
    """
    settings = load_settings()
    for name in datasets or (*settings.joint, *settings.datasets):
        table = Table("artefact", "partition", "built", "state", "figure", title=name, title_justify="left")
        for run in plan_dataset(settings, name):
            if run.work.dataset == name:
                table.add_row(run.stage.name, escape(run.partition), *_cells(run))
        out.print(table)
        _show_best(Work(settings, name))


def _cells(run: StageRun) -> tuple[str, str, str]:
    """When the artefact was built, its state, and its figure."""
    stamp = run.stage.stamp(run.work)
    if stamp is None:
        return "-", "[dim]not built[/]", ""
    if not run.stage.is_current(run.work):
        state = "[yellow]stale[/]"
    else:
        state = "[green]current[/]" if stamp["stats"].get("promoted", True) else "[yellow]refused[/]"
    built = datetime.fromisoformat(stamp["finished_at"])
    figure = format_figure(run.stage.name, stamp["stats"])
    return f"{built:%Y-%m-%d %H:%M} ({format_age(datetime.now(UTC) - built)})", state, figure


def format_age(age: timedelta) -> str:
    """Return the age in days, hours or minutes: the largest unit of which it has at least one."""
    units = {"d": 86_400, "h": 3_600, "min": 60}
    unit, seconds = next(((u, s) for u, s in units.items() if age.total_seconds() >= s), ("min", 60))
    return f"{int(age.total_seconds() // seconds)} {unit} ago"


def format_figure(stage: str, stats: dict[str, Any]) -> str:
    """Return a stage's main figure; empty if an earlier version of the stage did not record it."""
    try:
        return FIGURES.get(stage, "").format(**stats)
    except (KeyError, TypeError, ValueError):
        return ""


def _show_best(work: Work) -> None:
    """Print the best and the served method, and the warnings of the last promotion."""
    if work.paths.metrics.exists() and (measured := headline(work.paths)):
        method, metrics = list(measured.items())[-1]
        served = served_method(work)
        line = f"best {DECIDING}: {metrics.get(DECIDING, 0.0):.4f} by {escape(method)}"
        if served == method:
            line += ", which serves"
        elif served in measured:
            line += f"; {escape(served)} serves, {measured[served].get(DECIDING, 0.0):.4f}"
        out.print(f"{line}\n")
    for warning in (pipeline.PROMOTED.stamp(work) or {"stats": {}})["stats"].get("warnings", []):
        out.print(f"[yellow]{escape(warning)}[/]")
