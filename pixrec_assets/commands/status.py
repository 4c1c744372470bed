"""`pixrec status`."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import click
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from pixrec_assets.commands.options import dataset_arguments
from pixrec_assets.headline import DECIDING, format_figure, headline, served_method
from pixrec_assets.plan import find_outdated, plan_dataset
from pixrec_assets.terminal import out
from pixrec_core import files, pipeline
from pixrec_core.settings import load_settings
from pixrec_core.stages import StageRun, Work

EXAMPLES: Final = """\b
Examples:
  pixrec status
  pixrec status books
"""


@click.command(epilog=EXAMPLES)
@dataset_arguments
def status(datasets: tuple[str, ...]) -> None:
    """Show the artefacts of each DATASET: when they were built, whether they are current, and their main figure.

    An artefact is stale if its settings, code or inputs from outside have changed since, and "behind" an artefact if
    that one is stale or has not been built; `pixrec run` builds both again. Without a DATASET, all datasets and joint
    trainings are shown.
    """
    settings = load_settings()
    for name in datasets or (*settings.joint, *settings.datasets):
        plan = list(plan_dataset(settings, name))
        outdated = find_outdated(plan)
        shown = [run for run in plan if run.work.dataset == name]
        columns = ["artefact", "variant", "built", "state", "figure"]
        if not any(run.work.variant for run in shown):
            columns.remove("variant")
        table = Table(
            *(Column(column, no_wrap=column != "figure") for column in columns),
            title=name, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0),
        )  # fmt: skip
        for run in shown:
            table.add_row(*_cells(run, outdated.get(str(run)), columns))
        out.print(table)
        _show_best(Work(settings, name))
        _show_freshness(Work(settings, name))
        if outdated:
            out.print(f"To make everything current: [bold]pixrec run {name}[/]\n")


def _cells(run: StageRun, outdated: str | None, columns: Sequence[str]) -> list[str | Text]:
    """The artefact, its variant, when it was built, its state, and its figure, which is cut to keep to one line."""
    stamp = run.stage.stamp(run.work)
    built, stats = "-", {}
    if stamp:
        built, stats = format_age(datetime.now(UTC) - datetime.fromisoformat(stamp["finished_at"])), stamp["stats"]
    if outdated:
        state = f"[{'yellow' if stamp else 'dim'}]{outdated}[/]"
    else:
        state = "[green]current[/]" if stats.get("promoted", True) else "[yellow]refused[/]"
    figure = Text(format_figure(run.stage.name, stats), no_wrap=True, overflow="ellipsis")
    cells: dict[str, str | Text] = {"artefact": run.stage.name, "variant": run.work.variant or "", "built": built}
    cells |= {"state": state, "figure": figure}
    return [cells[column] for column in columns]


def format_age(age: timedelta) -> str:
    """Return the age in days, hours or minutes: the largest unit of which it has at least one.

    A negative age, after the clock has gone back, counts as none.
    """
    units, passed = {"d": 86_400, "h": 3_600, "min": 60}, max(age.total_seconds(), 0)
    unit, seconds = next(((u, s) for u, s in units.items() if passed >= s), ("min", 60))
    return f"{int(passed // seconds)} {unit} ago"


def _show_best(work: Work) -> None:
    """Print the best and the served method, and the warnings of the last promotion."""
    if work.paths.metrics.exists() and (measured := headline(work.paths)):
        served, best = served_method(work), next(iter(measured))
        is_measured = pipeline.serves_what_was_measured(work)
        values = {method: f"{metrics.get(DECIDING, 0.0):.4f}" for method, metrics in measured.items()}
        if served in values and is_measured:
            line = f"{escape(served)} serves: {DECIDING} {values[served]} on test users"
            is_best = values[served] == values[best]
            line += ", the best" if is_best else f"; {escape(best)}, which does not serve, has {values[best]}"
        else:
            serves = f"{escape(served)} of an earlier training serves" if served else "nothing serves"
            line = f"best {DECIDING} on test users: {values[best]} by {escape(best)}; {serves}"
        out.print(f"{line}\n")
    for warning in pipeline.PROMOTED.stats(work).get("warnings", []):
        out.print(f"[yellow]{escape(warning)}[/]")


def _show_freshness(work: Work) -> None:
    """Print how old what serves is: its data, its training, and its last fit on all interactions."""
    path = work.paths.promoted.manifest
    promotion = files.read_json(path) if path.exists() else {}
    if "trained_at" not in promotion:  # nothing was promoted, or by an earlier version
        return
    fitted = promotion.get("refitted_at", {})
    refit = f"{len(fitted)} methods fitted on all interactions, the last at {max(fitted.values())}" if fitted else ""
    out.print(
        f"serving: promotion {promotion['number']}, data of {promotion['promoted_at']}, "
        f"trained at {promotion['trained_at']}, {refit or 'no method fitted on all interactions'}\n"
    )
