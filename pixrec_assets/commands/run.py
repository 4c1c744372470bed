"""`pixrec run`: run what is missing or stale; `pixrec backfill` and `pixrec demo` are spellings of it."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click
from rich.markup import escape

from pixrec_assets.answer import print_answer
from pixrec_assets.commands.options import dataset_arguments
from pixrec_assets.home import dagster_home
from pixrec_assets.plan import find_outdated, plan_dataset, plan_datasets
from pixrec_assets.runner import READABLE, Outcome, Runner, State, summarise
from pixrec_assets.terminal import err, out, show_progress, warn
from pixrec_assets.workers import InProcessPool, WorkerPool
from pixrec_core import pipeline
from pixrec_core.errors import BackboneError, ContractError, MissingArtefactError, SettingsError, SourceError
from pixrec_core.settings import Settings, load_settings
from pixrec_core.stages import StageRun, Work

SAMPLE: Final = "sample"
STAGES: Final = tuple(stage.name for stage in pipeline.STAGES)

#: Errors after which the same command fails again until a setting, a path or the data are corrected.
CORRECTABLE: Final = tuple(each.__name__ for each in (BackboneError, ContractError, SettingsError, SourceError))

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
def run(
    datasets: tuple[str, ...],
    variants: tuple[str, ...],
    stages: tuple[str, ...],
    up_to: str | None,
    workers: int,
    force: bool,
) -> None:
    """Run what is missing or stale of each DATASET, and show the metrics of its methods if they are current.

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
    options = {"--variant": variants, "--stage": stages, "--up-to": [up_to] if up_to else []}
    words = [word for option, names in options.items() for name in names for word in (option, name)]
    words += ["--workers", str(workers)] if workers > 1 else []
    run_or_exit(settings, runs, "run", datasets, words, workers=workers, force=force)
    outdated = {dataset: find_outdated(list(plan_dataset(settings, dataset))) for dataset in datasets}
    _warn_of_outdated(runs, outdated)
    for dataset in datasets:
        if dataset in settings.datasets:
            print_answer(Work(settings, dataset), outdated[dataset], out)


def _warn_of_outdated(runs: Sequence[StageRun], outdated: Mapping[str, Mapping[str, str]]) -> None:
    """Warn where a stage of this call depends on a stale artefact that was not part of the call."""
    for dataset, reasons in outdated.items():
        behind = next((run for run in runs if reasons.get(str(run), "").startswith("behind")), None)
        if behind and behind.work.dataset == dataset:
            warn(
                f"{behind.stage.name} of {behind.partition} is {reasons[str(behind)]}. "
                f"To make everything current: pixrec run {dataset}"
            )


def _spelling(name: str, summary: str, **fixed: Any) -> click.Command:
    """Return `pixrec run` under another name; parameters in `fixed` are set and not options."""
    parameters = [parameter for parameter in run.params if not fixed]
    epilog = f"\b\nExamples:\n  pixrec {name}\n"

    def call(**options: Any) -> None:
        click.get_current_context().invoke(run, **fixed, **options)

    return click.Command(name, callback=call, params=parameters, help=summary, epilog=epilog)


backfill = _spelling("backfill", "The same as `pixrec run`, under the name that Dagster has for many partitions.")
demo = _spelling("demo", "The same as `pixrec run sample`: the whole pipeline on generated data.", datasets=(SAMPLE,))


def run_or_exit(
    settings: Settings,
    runs: Sequence[StageRun],
    command: str,
    datasets: Sequence[str],
    words: Sequence[str] = (),
    *,
    workers: int = 1,
    force: bool = False,
) -> None:
    """Run stages and print a summary. If some are unfinished, print why and how to continue, and end the process.

    `command`, `datasets` and `words` are the command line that continues; datasets that are finished are left out.

    Raises:
        KeyboardInterrupt: a signal stopped the runs.
        SystemExit: with code 1, a stage failed.
    """
    show_progress()
    outcomes = Runner(runs, InProcessPool() if workers == 1 else WorkerPool(workers), out, force=force).run_all()
    out.print(summarise(outcomes))
    unfinished = {outcome.run.work.dataset for outcome in outcomes if outcome.state not in READABLE}
    if unfinished:
        again = [name for name in datasets if name in unfinished] or datasets
        _explain_and_exit(settings, outcomes, [command, *again, *words])


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
        texts = [each.failure.text for each in failed if each.failure]
        must_correct = bool(texts) and all(text.startswith(CORRECTABLE) for text in texts)
        then = "After the correction, continue with" if must_correct else "To continue"
        err.print(f"Finished artefacts are kept. {then}: [bold]{escape(command)}[/]")
    if any(outcome.state in (State.STOPPED, State.NOT_STARTED) for outcome in outcomes):
        raise KeyboardInterrupt
    sys.exit(1)
