"""`pixrec run`: run what is missing or stale; `pixrec backfill` and `pixrec demo` are spellings of it."""

import shlex
import sys
from collections.abc import Sequence
from typing import Any, Final

import click
from rich.markup import escape
from rich.table import Table

from pixrec_assets.commands.options import dataset_arguments, deprecated_option
from pixrec_assets.headline import COLUMNS, headline, rows_of, served_method
from pixrec_assets.home import dagster_home
from pixrec_assets.plan import plan_datasets
from pixrec_assets.runner import READABLE, Outcome, Runner, State, summarise
from pixrec_assets.terminal import err, out, show_progress
from pixrec_assets.workers import InProcessPool, WorkerPool
from pixrec_core import pipeline
from pixrec_core.errors import MissingArtefactError
from pixrec_core.paths import DatasetPaths
from pixrec_core.settings import Settings, load_settings
from pixrec_core.stages import Work

SAMPLE: Final = "sample"
STAGES: Final = tuple(stage.name for stage in pipeline.STAGES)
#: Which item of each test user is to be predicted, by split.
TARGETS: Final = {"leave_one_out": "last item hidden", "time": "first item after the test cut hidden"}

EXAMPLES: Final = f"""\b
Stages, inputs first:
  {", ".join(STAGES[:7])},
  {", ".join(STAGES[7:])}
\b
Examples:
  pixrec run                                        # every dataset of pixrec.toml
  pixrec run books films --workers 2
  pixrec run books --up-to sequences                # prepare the data, train nothing
  pixrec run books --variant text_only
  pixrec run books --stage images --force           # try failed photos again
\b
Exit code: 0 everything is built, 1 a stage failed, 2 wrong options, 130 Ctrl-C, 143 SIGTERM.
"""


@click.command(epilog=EXAMPLES)
@dataset_arguments
@click.option(
    "--variant",
    "variants",
    multiple=True,
    help="Train only this variant (repeatable); stages that compare all variants are left out.",
)
@click.option("--stage", "stages", multiple=True, metavar="STAGE", help="Run only this stage (repeatable).")
@click.option("--up-to", metavar="STAGE", help="Run this stage and everything that it depends on.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Number of processes.")
@click.option("--force", is_flag=True, help="Run stages again even if they are up to date.")
@deprecated_option("datasets")
@deprecated_option("variants")
@deprecated_option("assets")
def run(
    datasets: tuple[str, ...],
    variants: tuple[str, ...],
    stages: tuple[str, ...],
    up_to: str | None,
    workers: int,
    force: bool,
) -> None:
    """Run what is missing or stale of each DATASET, and show the metrics of its methods.

    A DATASET is a dataset or a joint training of pixrec.toml; without one, all datasets run. Inputs run first. A failed
    stage stops only the stages that depend on it. The same command continues after a failure or an interruption:
    finished artefacts are kept, and a training resumes after its last finished epoch.

    Every artefact is a Dagster run with its partition as tag, visible in the UI afterwards. With one worker, stages
    run in this process; with more, stages that do not depend on each other run at the same time, but only one training.
    """
    for name in (*stages, *filter(None, [up_to])):
        if name not in STAGES:
            raise click.BadParameter(f"{name!r} is not one of {', '.join(STAGES)}")
    if stages and up_to:
        raise click.UsageError("give --stage or --up-to, not both")
    settings = load_settings()
    datasets = datasets or tuple(settings.datasets)
    runs = plan_datasets(settings, datasets, variants, stages, up_to)
    show_progress()
    outcomes = Runner(runs, InProcessPool() if workers == 1 else WorkerPool(workers), out, force=force).run_all()
    out.print(summarise(outcomes))
    unfinished = {outcome.run.work.dataset for outcome in outcomes if outcome.state not in READABLE}
    if unfinished:
        again = [name for name in datasets if name in unfinished] or datasets
        options = {"--variant": variants, "--stage": stages, "--up-to": [up_to] if up_to else []}
        words = [
            "run",
            *again,
            *(word for option, names in options.items() for name in names for word in (option, name)),
        ]
        _explain_and_exit(settings, outcomes, [*words, *(["--workers", str(workers)] if workers > 1 else [])])
    for dataset in datasets:
        if dataset in settings.datasets:
            _show_metrics(settings, dataset)


def _spelling(name: str, summary: str, **fixed: Any) -> click.Command:
    """Return `pixrec run` under another name; parameters in `fixed` are set and not options."""
    parameters = [parameter for parameter in run.params if not fixed]
    epilog = f"\b\nExamples:\n  pixrec {name}\n"

    def call(**options: Any) -> None:
        click.get_current_context().invoke(run, **fixed, **options)

    return click.Command(name, callback=call, params=parameters, help=summary, epilog=epilog)


backfill = _spelling("backfill", "The same as `pixrec run`, under the name that Dagster has for many partitions.")
demo = _spelling("demo", "The same as `pixrec run sample`: the whole pipeline on generated data.", datasets=(SAMPLE,))


def _explain_and_exit(settings: Settings, outcomes: Sequence[Outcome], words: Sequence[str]) -> None:
    """Print why stages failed and how to continue, then end the process.

    Raises:
        KeyboardInterrupt: a signal stopped the runs.
        SystemExit: with code 1, a stage failed.
    """
    failed = [outcome for outcome in outcomes if outcome.state is State.FAILED]
    for outcome in failed:
        assert outcome.failure, "a failed stage run has its failure"
        err.print(f"[bold red]{escape(str(outcome.run))} failed[/]\n[red]{escape(outcome.failure.text.strip())}[/]")
        if not outcome.failure.expected:
            home = dagster_home(settings)
            err.print(
                f"This is unexpected. The whole log is run {outcome.failure.run_id} of the Dagster instance in {home}"
            )
    lacks_input = MissingArtefactError.__name__
    if not failed or not all(each.failure and each.failure.text.startswith(lacks_input) for each in failed):
        config = click.get_current_context().find_root().params.get("config")
        command = shlex.join(["pixrec", *(["--config", str(config)] if config else []), *words])
        err.print(f"Finished artefacts are kept. To continue: [bold]{escape(command)}[/]")
    if any(outcome.state in (State.STOPPED, State.NOT_STARTED) for outcome in outcomes):
        raise KeyboardInterrupt
    sys.exit(1)


def _show_metrics(settings: Settings, dataset: str) -> None:
    paths = DatasetPaths.of(settings.data_dir, dataset)
    if not paths.metrics.exists():
        return
    target = TARGETS[settings.dataset(dataset).sequences.split]
    table = Table(*COLUMNS, title=f"{dataset}: {target}, seen items allowed", title_justify="left")
    for row in rows_of(headline(paths), served_method(Work(settings, dataset))):
        table.add_row(*map(escape, row))
    out.print(table)
    out.print(f"report: {paths.report / 'index.html'}")
