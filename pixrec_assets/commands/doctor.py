"""`pixrec doctor`."""

import sys
from typing import Final

import click
from rich.markup import escape

from pixrec_assets.doctor.finding import Level
from pixrec_assets.terminal import out

COLOURS: Final = {Level.OK: "green", Level.WARNING: "yellow", Level.FAULT: "red"}
EXAMPLES: Final = """\b
Examples:
  pixrec doctor
  pixrec --config shop.toml doctor && pixrec backfill
"""


@click.command(epilog=EXAMPLES)
def doctor() -> None:
    """Look whether this machine is fit to run: settings, folders, disk, Dagster, PyTorch, network.

    Each line is ok, a warning or a fault, with its mend below. Exit code 1 where there is a fault. The
    network is asked only for what the settings would download.
    """
    from pixrec_assets import doctor as module  # brings requests and Polars

    faults = 0
    for finding in module.examine():
        faults += finding.level is Level.FAULT
        colour = COLOURS[finding.level]
        out.print(f"[{colour}]{finding.level:<8}[/] [bold]{escape(finding.subject)}[/]: {escape(finding.told)}")
        if finding.mend:
            out.print(f"         -> {escape(finding.mend)}")
    if faults:
        out.print(f"[red]{faults} fault{'s' * (faults > 1)}[/]")
        sys.exit(1)
