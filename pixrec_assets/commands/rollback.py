"""`pixrec rollback`: an earlier promotion serves again."""

import click
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from pixrec_assets.commands.options import one_dataset_argument
from pixrec_assets.terminal import out
from pixrec_core import pipeline
from pixrec_core.settings import load_settings
from pixrec_core.stages import Work


@click.command()
@one_dataset_argument
@click.option("--to", "number", type=int, metavar="PROMOTION", help="Number of the promotion to serve.")
def rollback(dataset: str, number: int | None) -> None:
    """Let an earlier promotion of DATASET serve again; without --to, list those that are kept.

    A running `pixrec serve` takes over within seconds. `pixrec refresh` and the gate of the next training continue from
    the promotion that serves.
    """
    work = Work(load_settings(), dataset)
    if number is None:
        _show_promotions(work)
        return
    stats = pipeline.rollback(work, number)
    out.print(
        f"{dataset}: {stats['method']} serves as promotion {number}; data of {stats['promoted_at']}, "
        f"trained {stats['trained_at']}"
    )


def _show_promotions(work: Work) -> None:
    from pixrec_core.serving.promotion import list_promotions, read_promotion

    served = read_promotion(work.paths.promoted)
    columns = ("promotion", "method", "data of (UTC)", "trained (UTC)", "refit", "NDCG@10")
    table = Table(
        *(Column(column, no_wrap=True) for column in columns), box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0)
    )
    for number, each in sorted({served.number: served, **list_promotions(work.paths.promoted)}.items()):
        name = f"{number} (serves)" if number == served.number else str(number)
        times = (time[:16].replace("T", " ") for time in (each.promoted_at, each.trained_at))
        table.add_row(name, each.method, *times, "yes" if each.refitted_at else "-", f"{each.score:.4f}")
    out.print(table)
    out.print(f"To change what serves: [bold]pixrec rollback {work.dataset} --to PROMOTION[/]")
