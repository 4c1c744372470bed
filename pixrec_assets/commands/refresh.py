"""`pixrec refresh`: new orders, products and photos reach what serves, without a training."""

import time

import click

from pixrec_assets.commands.options import dataset_arguments
from pixrec_assets.commands.run import run_or_exit
from pixrec_assets.plan import plan_datasets
from pixrec_assets.terminal import duration, out
from pixrec_core import pipeline
from pixrec_core.settings import load_settings
from pixrec_core.stages import Work


@click.command()
@dataset_arguments
def refresh(datasets: tuple[str, ...]) -> None:
    """Bring what serves up to date with the raw files of each DATASET, without a training.

    New photos are downloaded, new items are encoded by content, histories are extended, and counts are made again. A
    running `pixrec serve` takes over within seconds. Weights of towers and of the blend stay as they are, until
    `pixrec run` trains again.
    """
    settings = load_settings()
    names = datasets or tuple(settings.datasets)
    run_or_exit(settings, plan_datasets(settings, names, up_to=pipeline.ITEM_FEATURES.name), "refresh", names)
    for name in names:
        begin = time.monotonic()
        stats = pipeline.refresh(Work(settings, name))
        out.print(
            f"{name}: {stats['method']} serves as promotion {stats['promotion']} with {stats['items']:,} items "
            f"({stats['new_items']:,} new, {stats['left_items']:,} gone) and {stats['interactions']:,} interactions; "
            f"trained {stats['trained_at']}; {duration(time.monotonic() - begin)}"
        )
