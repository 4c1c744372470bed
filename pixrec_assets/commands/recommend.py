"""`pixrec recommend`: one query, answered as a table, as JSON or as a page."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from rich.markup import escape
from rich.table import Column, Table

from pixrec_assets.commands.options import one_dataset_argument, output_errors
from pixrec_assets.terminal import PrintableConsole, echo, out
from pixrec_core import files
from pixrec_core.errors import QueryError
from pixrec_core.paths import DatasetPaths
from pixrec_core.settings import load_settings

if TYPE_CHECKING:
    from pixrec_core.report.answer import Answer, Query

WIDTH: Final = 120  # characters per line of a table in a file

EXAMPLES: Final = """\b
Examples:
  pixrec recommend sample --text "red wool hat"
  pixrec recommend books --user A1B2 --filter-seen --top 20
  pixrec recommend books --user A1B2 --method ease
  pixrec recommend books --photo cover.jpg --format html --output similar.html
"""


@click.command(epilog=EXAMPLES)
@one_dataset_argument
@click.option("--user", help="User id; returns the next items after the user's whole history.")
@click.option(
    "--items",
    multiple=True,
    help="Item ids of a history, oldest first, joined by commas or each with --items; returns the next items.",
)
@click.option("--text", help="Words; returns the items most similar to an item with this title.")
@click.option(
    "--photo",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Image file; returns the most similar items.",
)
@click.option("--method", help="Method to query; by default the one that serves.")
@click.option("--top", type=click.IntRange(min=1), default=10, show_default=True, help="Number of items.")
@click.option("--allow-seen/--filter-seen", default=True, help="Whether items of the history may be recommended.")
@click.option("--format", "format_", type=click.Choice(["table", "json", "html"]), default="table", show_default=True)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write to this file.")
def recommend(
    dataset: str,
    user: str | None,
    items: tuple[str, ...],
    text: str | None,
    photo: Path | None,
    method: str | None,
    top: int,
    allow_seen: bool,
    format_: str,
    output: Path | None,
) -> None:
    """Recommend items of a DATASET to a user or after a history, or find items similar to a text or a photo.

    The promoted method that was best on validation answers, even if others have been trained since. To a text or photo,
    the best variant that reads it answers.
    """
    if sum(given is not None for given in (user, items or None, text, photo)) != 1:
        raise click.UsageError("give exactly one of --user, --items, --text and --photo")
    from pixrec_core.report.answer import Query, answer_query  # imports Polars
    from pixrec_core.serving import Recommender

    settings = load_settings()
    paths, max_bytes = DatasetPaths.of(settings.data_dir, dataset), settings.dataset(dataset).images.max_bytes
    if photo:
        query = _photo_query(photo, max_bytes)
    elif user is not None:
        query = Query("user", user)
    else:
        query = Query("text", text) if text is not None else Query("items", ",".join(items))
    recommender = Recommender.open(paths.promoted.root, settings.dataset(dataset).rules)
    answer = answer_query(recommender, query, top, filter_seen=not allow_seen, method=method)
    _show_answer(answer, paths, format_, output)


def _photo_query(path: Path, max_bytes: int) -> "Query":
    from pixrec_core.report.answer import Query

    if (size := path.stat().st_size) > max_bytes:
        raise QueryError(f"{path} has {size:,} bytes; photos may have {max_bytes:,} (images.max_bytes)")
    return Query("photo", path.name, path.read_bytes())


def _show_answer(answer: "Answer", paths: DatasetPaths, format_: str, output: Path | None) -> None:
    """Print the answer, or write it to a file atomically."""
    from pixrec_core.report.answer import as_json

    def html() -> str:
        from pixrec_core.report.answer_page import as_html  # imports Jinja and SciPy

        return as_html(answer, paths)

    texts: dict[str, Callable[[], str]] = {
        "json": lambda: as_json(answer) + "\n",
        "html": html,
        "table": lambda: _plain_text(_answer_table(answer)),
    }
    if output:
        with output_errors(output), files.replacing(output) as temporary:
            temporary.write_text(texts[format_](), encoding="utf-8")
        out.print(f"{format_}: {escape(str(output))}")
    elif format_ == "table":
        out.print(_answer_table(answer))
    else:
        echo(texts[format_]())


def _answer_table(answer: "Answer") -> Table:
    promotion = answer.recommender.promotion
    table = Table(
        "rank",
        *(Column(name, overflow="fold") for name in ("item", "title")),
        "score",
        title=f"{promotion.dataset}, {answer.method}, promoted {promotion.promoted_at}",
        title_justify="left",
    )
    for row in answer.rows():
        score = "pinned" if row["score"] is None else f"{row['score']:.4f}"
        table.add_row(str(row["rank"]), escape(row["item"]), escape(row["title"]), score)
    return table


def _plain_text(table: Table) -> str:
    console = PrintableConsole(width=WIDTH, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())
