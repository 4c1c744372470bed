"""The DATASET argument that most commands share, and deprecated option names."""

import functools
from collections.abc import Callable
from typing import Any, Final

import click

from pixrec_assets.terminal import warn
from pixrec_core.settings import load_settings

#: Deprecated option -> parameter that has its values now. Accepted for one release.
DEPRECATED: Final = {"dataset": "datasets", "datasets": "datasets", "variants": "variants", "assets": "stages"}

Function = Callable[..., Any]


def dataset_arguments(function: Function) -> Function:
    """Add the argument `[DATASET]...` as parameter `datasets`, and `--dataset` as its deprecated spelling."""
    return deprecated_option("dataset")(click.argument("datasets", nargs=-1, metavar="[DATASET]...")(function))


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

    argument = click.argument("datasets", nargs=-1, metavar="[DATASET]")
    return deprecated_option("dataset")(argument(with_one_dataset))


def deprecated_option(old: str) -> Callable[[Function], Function]:
    """Accept `--old A,B` as hidden option; its values are added to the parameter that replaces it."""

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def with_old_values(**options: Any) -> Any:
            given, new = options.pop(f"old_{old}"), DEPRECATED[old]
            if given:
                spelling = "DATASET as argument" if new == "datasets" else f"--{new.removesuffix('s')} NAME"
                warn(f"--{old} is deprecated; write {spelling}")
                names = (name.strip() for values in given for name in values.split(","))
                options[new] = (*options[new], *filter(None, names))
            return function(**options)

        return click.option(f"--{old}", f"old_{old}", multiple=True, hidden=True)(with_old_values)

    return decorate


def deprecated_variant_option(function: Function) -> Function:
    """Accept `--variant NAME` as hidden option for `--method NAME`."""

    @functools.wraps(function)
    def with_method(variant: str | None, **options: Any) -> Any:
        if variant:
            warn("--variant is deprecated; write --method NAME")
        return function(**options | {"method": options["method"] or variant})

    return click.option("--variant", hidden=True)(with_method)
