"""`pixrec export`."""

from pathlib import Path
from typing import Final

import click
from rich.markup import escape

from pixrec_assets.commands.options import one_dataset_argument
from pixrec_assets.terminal import out
from pixrec_core.paths import DatasetPaths
from pixrec_core.settings import load_settings

EXAMPLES: Final = """\b
Examples:
  pixrec export books --output books-vectors
  pixrec export books --variant text_only --output books-vectors
"""


@click.command(epilog=EXAMPLES)
@one_dataset_argument
@click.option("--variant", help="Variant to export; by default the promoted variant with the best NDCG@10.")
@click.option(
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write; an earlier export in it is replaced.",
)
def export(dataset: str, variant: str | None, output: Path) -> None:
    """Write the item vectors of a DATASET as Parquet, for a vector database.

    They come from the promoted checkpoint, even if another has been trained since: docs/serving.md.
    """
    from pixrec_core.serving import export as module  # imports torch
    from pixrec_core.serving.promotion import choose_promotion

    settings = load_settings()
    settings.dataset(dataset)
    folder = choose_promotion(dataset, DatasetPaths.of(settings.data_dir, dataset), settings.variants, variant)
    written = module.export_items(folder, output.resolve())
    out.print(
        f"{written['items']:,} vectors of {written['dimension']} numbers, {written['variant']} of {dataset}: "
        f"{escape(str(output / module.EXPORTED))}"
    )
