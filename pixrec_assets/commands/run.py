"""`pixrec run`, `pixrec demo`, `pixrec backfill`: one way to make what is missing or stale, of one dataset or many."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click
from rich.markup import escape
from rich.table import Table

from pixrec_assets.backfill import READABLE, Backfill, Outcome, State
from pixrec_assets.headline import COLUMNS, headline, rows_of
from pixrec_assets.home import dagster_home
from pixrec_assets.running import key_of, tasks_of
from pixrec_assets.summary import summary
from pixrec_assets.terminal import err, out, show_progress
from pixrec_assets.workers import InProcessPool, Workers
from pixrec_core import pipeline
from pixrec_core.paths import DatasetPaths
from pixrec_core.settings import Settings, load_settings

SAMPLE: Final = "sample"
STAGES: Final = tuple(stage.name for stage in pipeline.STAGES)
#: What test users' next items are, by split.
HIDDEN: Final = {"leave_one_out": "last item hidden", "time": "first item after the test cut hidden"}

RUN_EXAMPLES: Final = """\b
Examples:
  pixrec run --dataset sample
  pixrec run --dataset sample --variant text_only
  pixrec run --dataset sample --stage images --force    # try failed photos again
"""
BACKFILL_EXAMPLES: Final = """\b
Examples:
  pixrec backfill                                       # all datasets of pixrec.toml
  pixrec backfill --datasets books,films --workers 2
  pixrec backfill --datasets books --variants text_only --assets checkpoint,ranking
\b
Exit code: 0 all made, 1 something failed, 2 wrong options, 130 Ctrl-C, 143 SIGTERM.
"""


class Names(click.ParamType[tuple[str, ...]]):
    """Names with commas between them, of those that are known where `known` says them."""

    name = "NAME[,NAME...]"

    def __init__(self, known: Sequence[str] = ()) -> None:
        self.known = known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        names = tuple(filter(None, (each.strip() for each in value.split(",")))) if isinstance(value, str) else value
        for name in names:
            if self.known and name not in self.known:
                self.fail(f"{name!r} is not one of {', '.join(self.known)}", param, ctx)
        return names


@click.command(epilog=RUN_EXAMPLES)
@click.option("--dataset", required=True, help="A dataset that the settings name, or a joint training.")
@click.option(
    "--variant",
    "variants",
    multiple=True,
    help="Train only this one (repeatable); the evaluation, which compares all, is left to a run without it.",
)
@click.option("--stage", "stages", multiple=True, type=click.Choice(STAGES), help="Make only this one (repeatable).")
@click.option("--force", is_flag=True, help="Make it again even where it is up to date.")
def run(dataset: str, variants: tuple[str, ...], stages: tuple[str, ...], force: bool) -> None:
    """Make what is missing or stale of one dataset, and show how well the variants do.

    A run that was stopped or killed goes on when it is started again: what was made is kept, and a
    training continues after its last whole epoch.
    """
    settings = load_settings()
    outcomes = _backfill(settings, (dataset,), variants, stages, 1, force=force)
    _end_unless_made(settings, outcomes, f"run --dataset {dataset}")
    _show_headline(settings, dataset)


@click.command()
def demo() -> None:
    """The whole pipeline on generated shoppers and drawn photos; no download, no settings file needed."""
    settings = load_settings()
    outcomes = _backfill(settings, (SAMPLE,), (), (), 1, force=False)
    _end_unless_made(settings, outcomes, f"run --dataset {SAMPLE}")
    _show_headline(settings, SAMPLE)


@click.command(epilog=BACKFILL_EXAMPLES)
@click.option("--datasets", type=Names(), default=(), help="Datasets and joint trainings; all datasets without it.")
@click.option("--variants", type=Names(), default=(), help="Train only these; what compares all is left out.")
@click.option("--assets", type=Names(STAGES), default=(), help=f"Make only these, of {', '.join(STAGES)}.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes to run in.")
@click.option("--force", is_flag=True, help="Make it again even where it is up to date.")
def backfill(
    datasets: tuple[str, ...], variants: tuple[str, ...], assets: tuple[str, ...], workers: int, force: bool
) -> None:
    """Make what is missing or stale of several datasets, without a daemon.

    Every artefact is a Dagster run with its partition's tag, to be seen in the UI afterwards. A
    failure stops only what depends on it. With one worker all runs in this process; with more, what
    does not depend on one another runs at a time, one training at a time where the pool `gpu` says so.
    """
    settings = load_settings()
    datasets = datasets or tuple(settings.datasets)
    outcomes = _backfill(settings, datasets, variants, assets, workers, force=force)
    out.print(summary(outcomes))
    lacking = {work.dataset for _, work in (o.task for o in outcomes if o.state not in READABLE)}
    again = [name for name in datasets if name in lacking] or datasets
    options = {"datasets": again, "variants": variants, "assets": assets}
    chosen = [f"--{name} {shlex.quote(','.join(values))}" for name, values in options.items() if values]
    _end_unless_made(settings, outcomes, " ".join(["backfill", *chosen, f"--workers {workers}"]))


def _backfill(
    settings: Settings,
    datasets: Sequence[str],
    variants: Sequence[str],
    stages: Sequence[str],
    workers: int,
    *,
    force: bool,
) -> list[Outcome]:
    tasks = tasks_of(settings, datasets, variants, stages)
    show_progress()
    return Backfill(tasks, InProcessPool() if workers == 1 else Workers(workers), out, force=force).run()


def _end_unless_made(settings: Settings, outcomes: Sequence[Outcome], again: str) -> None:
    """Where something is lacking, say what and how to go on, and end the process.

    Raises:
        KeyboardInterrupt: a signal ended it.
        SystemExit: with code 1, something failed.
    """
    if all(outcome.state in READABLE for outcome in outcomes):
        return
    for outcome in outcomes:
        if outcome.state is State.FAILED:
            _explain(outcome, dagster_home(settings))
    config = click.get_current_context().find_root().params["config"]
    command = f"pixrec --config {shlex.quote(str(config))} {again}" if config else f"pixrec {again}"
    err.print(f"What was made before is kept. To go on: [bold]{escape(command)}[/]")
    if any(outcome.state in (State.STOPPED, State.NOT_BEGUN) for outcome in outcomes):
        raise KeyboardInterrupt
    sys.exit(1)


def _explain(failed: Outcome, home: Path) -> None:
    """What went wrong in one task."""
    assert failed.fault, "a failed task has its fault"
    err.print(f"[bold red]{escape(' of '.join(key_of(failed.task)))} failed[/]")
    err.print(f"[red]{escape(failed.fault.text.strip())}[/]")
    if not failed.fault.known:
        err.print(f"This is unexpected. The whole log is run {failed.fault.run_id} of the Dagster instance in {home}")


def _show_headline(settings: Settings, dataset: str) -> None:
    paths = DatasetPaths.of(settings.data_dir, dataset)
    if not paths.metrics.exists():
        return
    table = Table(
        *COLUMNS, title=f"{HIDDEN[settings.dataset(dataset).sequences.split]}, seen items allowed", title_justify="left"
    )
    for row in rows_of(headline(paths)):
        table.add_row(*map(escape, row))
    out.print(table)
    out.print(f"report: {paths.report / 'index.html'}")
