"""The answer at the end of a run: how good the methods are, what serves, and what to do next."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pixrec_assets.headline import COLUMNS, headline, rows_of, served_method
from pixrec_assets.plan import NOT_BUILT
from pixrec_core import files, pipeline
from pixrec_core.stages import StageRun, Work

#: Which item of each test user is to be predicted, by split.
TARGETS: Final = {"leave_one_out": "last item hidden", "time": "first item after the test cut hidden"}
#: Share of test targets at the instant of another item above which the order of the file decides most of them.
MANY_TIES: Final = 0.5
#: Below this, 95 % intervals of Recall@10 are several points wide.
FEW_USERS: Final = 1000


def print_answer(work: Work, outdated: Mapping[str, str], console: Console) -> None:
    """Print the metrics of a dataset's methods, best first, the sentences that open its report, and the next steps.

    Without a current evaluation only the warnings of the last promotion are printed, if that one is current.

    `outdated` is what `plan.find_outdated` returns for the dataset.
    """
    promoted, evaluation, report = (
        outdated.get(str(StageRun(stage, work))) for stage in (pipeline.PROMOTED, pipeline.EVALUATION, pipeline.REPORT)
    )
    warnings = [] if promoted else pipeline.PROMOTED.stats(work).get("warnings", [])
    if evaluation:
        _print_plain(console, warnings, style="yellow")
        if evaluation != NOT_BUILT:
            console.print(
                f"The evaluation of {work.dataset} is {evaluation}, so its figures are not shown. "
                f"To make everything current: pixrec run {work.dataset}"
            )
        return
    target = TARGETS[work.dataset_settings.sequences.split]
    table = Table(*COLUMNS, title=f"{work.dataset}: {target}, seen items allowed", title_justify="left")
    for row in rows_of(headline(work.paths), served_method(work)):
        table.add_row(*map(escape, row))
    console.print(table)
    _print_plain(console, _sentences(work))
    _print_plain(console, warnings, style="yellow")
    _print_plain(console, (f"next: {step}" for step in next_steps(work)))
    if not report:
        console.print(f"report: {escape(str(work.paths.report / 'index.html'))}")


def _print_plain(console: Console, lines: Iterable[str], style: str | None = None) -> None:
    for line in lines:
        console.print(line, markup=False, style=style)


def _sentences(work: Work) -> Iterator[str]:
    """Yield the two sentences that open the report, and whether what serves was fitted again since."""
    from pixrec_core.report import tables  # imports Polars
    from pixrec_core.report.inputs import read_metrics

    protocol = next(iter(read_metrics(work.paths).protocols.values()))
    measured = pipeline.serves_what_was_measured(work)
    served = tables.served_sentence(protocol, served_method(work), is_measured=measured)
    for sentence in (served, tables.photo_sentence(protocol)):
        yield sentence.replace("\N{NO-BREAK SPACE}", " ")
    if measured and files.read_json(work.paths.promoted.manifest).get("refitted_at"):
        yield "What serves was then fitted on all interactions; the figures are those of the measurement before."


def next_steps(work: Work) -> Iterator[str]:
    """Yield what would make the figures better or surer, each with the reason that was measured."""
    epochs = work.dataset_settings.training.epochs
    for variant in work.settings.variants:
        trained = pipeline.CHECKPOINT.stats(work.with_variant(variant))
        if trained.get("best_epoch") == epochs:
            yield (
                f"the validation metric of {variant} still rose at the last epoch; "
                f"try more than training.epochs = {epochs}"
            )
    sequences = pipeline.SEQUENCES.stats(work)
    profile = sequences.get("profile", {})
    if (tied := profile.get("share_tied_test") or 0) > MANY_TIES:
        yield (
            f"{100 * tied:.0f} % of test targets were bought at the same instant as another item, so the order of the "
            "file chose them; use timestamps that are more precise, if there are any"
        )
    if 0 < (users := sequences.get("measured_users", 0)) < FEW_USERS:
        yield f"only {users:,} users are tested, so intervals are wide; more data would make the comparison surer"
