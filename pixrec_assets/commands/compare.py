"""`pixrec compare`."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from pixrec_assets.terminal import echo, out

if TYPE_CHECKING:
    import polars as pl

EXAMPLES: Final = """\b
Examples:
  pixrec compare data/books data-seed1/books data-seed2/books
  pixrec compare data/books data-seed1/books --reference ease --format latex
  pixrec compare with-photos/books --versus data/books
"""

RUN: Final = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command(epilog=EXAMPLES)
@click.argument("runs", nargs=-1, required=True, type=RUN, metavar="RUN...")
@click.option("--versus", multiple=True, type=RUN, metavar="RUN", help="Run of another setting (repeatable).")
@click.option("--reference", metavar="METHOD", help="Subtract this method; by default the best other one.")
@click.option("--metric", "metrics", multiple=True, default=("Recall@10", "NDCG@10"), show_default=True)
@click.option(
    "--format", "form", type=click.Choice(["table", "markdown", "latex", "csv"]), default="table", show_default=True
)
def compare(
    runs: tuple[Path, ...], versus: tuple[Path, ...], reference: str | None, metrics: tuple[str, ...], form: str
) -> None:
    """Compare the methods of several evaluations, such as one per seed, seen items allowed.

    A RUN is the folder of an evaluated dataset, such as data/books. Shown are the mean, the standard deviation over
    runs (not of a method that all runs share), and paired differences with 95 % intervals over users: to the best other
    method, or with --versus to the same method in runs of another setting. Only users with the same target in all runs
    count, and only methods that ranked for all of them.
    """
    if versus and reference:
        raise click.UsageError("give --versus or --reference, not both")
    from pixrec_core.evaluation.runs import Run, compare_runs  # imports Polars

    read = [[Run.read(folder) for folder in folders] for folders in (runs, versus)]
    table = compare_runs(read[0], metrics, versus=read[1], reference=reference)
    if form == "csv":
        echo(table.write_csv())
        return
    minus = f"minus {reference or ('versus' if versus else 'best other')}"
    columns = ["method", *(each for metric in metrics for each in (metric, minus))]
    rows = list(_rows(table, metrics))
    if form == "table":
        count, users = table.select("runs", "users").row(0)
        title = f"{count} run{'s' if count > 1 else ''}, {users:,} users, seen items allowed; differences in points"
        shown = Table(
            *columns, title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0)
        )
        for row in rows:
            shown.add_row(*map(escape, row))
        out.print(shown)
    else:
        lines = _markdown(columns, rows) if form == "markdown" else _latex(columns, rows)
        echo("".join(f"{line}\n" for line in lines))


def _rows(table: "pl.DataFrame", metrics: Sequence[str]) -> Iterator[list[str]]:
    """Yield the cells of each method: its name, then value and difference by each metric."""
    for (method,), group in table.group_by("method", maintain_order=True):
        by_metric = {row["metric"]: row for row in group.iter_rows(named=True)}
        yield [str(method), *(cell for metric in metrics for cell in _cells(by_metric[metric]))]


def _cells(row: dict[str, Any]) -> tuple[str, str]:
    deviation = "" if row["deviation"] is None else f" ± {row['deviation']:.4f}"
    difference = ""
    if row["difference"] is not None:
        points, low, high = (100 * row[end] for end in ("difference", "low", "high"))
        difference = f"{points:+z.1f} ({low:z.1f} to {high:z.1f})"
    return f"{row['mean']:.4f}{deviation}", difference


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def _latex(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a table for the package booktabs."""
    yield rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}"
    yield r"\toprule"
    lines = [" & ".join(map(_in_latex, row)) + r" \\" for row in (columns, *rows)]
    yield from [lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    yield r"\end{tabular}"


def _in_latex(cell: str) -> str:
    """Return a cell with a minus sign, not a hyphen, before numbers."""
    return re.sub(r"-(?=\d)", "$-$", cell).replace("_", r"\_").replace("±", r"$\pm$")
