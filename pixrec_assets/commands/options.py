"""The DATASET argument that most commands share."""

import functools
from collections.abc import Callable
from typing import Any

import click

from pixrec_core.settings import load_settings

Function = Callable[..., Any]


def dataset_arguments(function: Function) -> Function:
    """Add the argument `[DATASET]...` as parameter `datasets`."""
    return click.argument("datasets", nargs=-1, metavar="[DATASET]...")(function)


def one_dataset_argument(function: Function) -> Function:
    """Add the argument `[DATASET]` as parameter `dataset`; without it, the only dataset of the settings."""

    @functools.wraps(function)
    def with_one_dataset(datasets: tuple[str, ...], **options: Any) -> Any:
        if len(datasets) > 1:
            raise click.UsageError(f"expected one dataset, got {', '.join(datasets)}")
        if not datasets:
            datasets = tuple(load_settings().datasets)
            if len(datasets) > 1:
                raise click.UsageError(f"name a dataset: {', '.join(datasets)}")
        return function(dataset=datasets[0], **options)

    return click.argument("datasets", nargs=-1, metavar="[DATASET]")(with_one_dataset)
