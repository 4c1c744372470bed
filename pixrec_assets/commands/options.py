"""What commands share: the DATASET argument, and errors of `--output`."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from pixrec_core.errors import SettingsError
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


@contextmanager
def output_errors(output: Path) -> Iterator[None]:
    """Report an error of the file system in the block, which writes to `--output`, as one message.

    Raises:
        SettingsError: a file or folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise SettingsError(
            f"--output: {error.filename or output} cannot be written ({error.strerror or error}); free disk space, "
            "make it writable, or name another path"
        ) from error
