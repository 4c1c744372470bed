"""`pixrec recommend`."""

from pathlib import Path
from typing import Final

import click

from pixrec_assets.terminal import out
from pixrec_core.paths import DatasetPaths
from pixrec_core.settings import load_settings

EXAMPLES: Final = """\b
Examples:
  pixrec recommend --dataset sample --text "red wool hat"
  pixrec recommend --dataset books --user A1B2 --filter-seen --top 20
  pixrec recommend --dataset books --photo cover.jpg --format html --output like-it.html
"""


@click.command(epilog=EXAMPLES)
@click.option("--dataset", required=True, help="A dataset that the settings name.")
@click.option("--user", help="Id of a user: what comes next after all that they had.")
@click.option("--items", help="A history, oldest first, ids joined by commas: what comes next.")
@click.option("--text", help="Words: the items nearest to one with this title.")
@click.option(
    "--photo",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A photo's file: the items nearest to one that looks so.",
)
@click.option("--variant", help="Who answers; without it the promoted variant with the best NDCG@10.")
@click.option("--top", type=click.IntRange(min=1), default=10, show_default=True, help="Items wanted.")
@click.option("--allow-seen/--filter-seen", default=True, help="Whether items of the history may be among them.")
@click.option("--format", "shape", type=click.Choice(["table", "json", "html"]), default="table", show_default=True)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write to this file instead.")
def recommend(
    dataset: str,
    user: str | None,
    items: str | None,
    text: str | None,
    photo: Path | None,
    variant: str | None,
    top: int,
    allow_seen: bool,
    shape: str,
    output: Path | None,
) -> None:
    """Recommend items to a user or after a history, or find those like a text or a photo.

    What answers is the promoted checkpoint, whatever has been trained since.
    """
    if sum(given is not None for given in (user, items, text, photo)) != 1:
        raise click.UsageError("give one of --user, --items, --text and --photo, and no more")
    from pixrec_assets import recommending  # brings torch and faiss

    settings = load_settings()
    if photo:
        query = recommending.by_photo(photo, settings.dataset(dataset).images.max_bytes)
    else:
        query = recommending.by_words(user=user, items=items, text=text)
    told = recommending.answer(settings, dataset, variant, query, top, filter_seen=not allow_seen)
    recommending.show(told, DatasetPaths.of(settings.data_dir, dataset), shape, output, out)
