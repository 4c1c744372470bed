"""`pixrec recommend`: one query, answered in a table, as JSON or as a page."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from pixrec_core import files
from pixrec_core.errors import QueryError
from pixrec_core.paths import DatasetPaths
from pixrec_core.report.answer import Answer, Query, as_html, as_json, ask
from pixrec_core.serving import Recommender
from pixrec_core.serving.choice import choose
from pixrec_core.settings import Settings

WIDTH: Final = 120  # characters of a table in a file


def answer(
    settings: Settings, dataset: str, variant: str | None, query: Query, top: int, *, filter_seen: bool
) -> Answer:
    """Ask what serves.

    Raises:
        PixRecError: dataset, variant or query are unknown, or nothing serves.
    """
    settings.dataset(dataset)
    paths = DatasetPaths.of(settings.data_dir, dataset)
    folder = choose(dataset, paths, settings.variants, variant)
    return ask(Recommender.load(folder.root), query, top, filter_seen=filter_seen)


def by_words(*, user: str | None, items: str | None, text: str | None) -> Query:
    """A query by the one of these that was given."""
    if user is not None:
        return Query("user", user)
    return Query("text", text) if text is not None else Query("items", items or "")


def by_photo(path: Path, most: int) -> Query:
    """A query by a photo file of `most` bytes or fewer.

    Raises:
        QueryError: it is larger.
    """
    if (size := path.stat().st_size) > most:
        raise QueryError(f"{path} has {size:,} bytes; photos may have {most:,} (images.max_bytes)")
    return Query("photo", path.name, path.read_bytes())


def show(told: Answer, paths: DatasetPaths, shape: str, output: Path | None, out: Console) -> None:
    """Print the answer, or write it to a file, whole or not at all."""
    texts: dict[str, Callable[[], str]] = {
        "json": lambda: as_json(told) + "\n",
        "html": lambda: as_html(told, paths),
        "table": lambda: _plain(_table(told)),
    }
    if output:
        with files.replacing(output) as temporary:
            temporary.write_text(texts[shape](), encoding="utf-8")
        out.print(f"{shape}: {escape(str(output))}")
    elif shape == "table":
        out.print(_table(told))
    else:
        click.echo(texts[shape](), nl=False)


def _table(told: Answer) -> Table:
    promotion = told.recommender.promotion
    table = Table(
        "rank",
        *(Column(name, overflow="fold") for name in ("item", "title")),
        "score",
        title=f"{promotion.dataset}, {promotion.variant}, promoted {promotion.promoted_at}",
        title_justify="left",
    )
    for row in told.rows():
        table.add_row(str(row["rank"]), escape(row["item"]), escape(row["title"]), f"{row['score']:.4f}")
    return table


def _plain(table: Table) -> str:
    console = Console(width=WIDTH, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())
