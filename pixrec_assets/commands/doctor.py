"""`pixrec doctor`."""

import sys
from typing import Final

import click
from rich.markup import escape

from pixrec_assets.terminal import out

#: By `Level`, which would import what the checks need.
COLOURS: Final = {"ok": "green", "warning": "yellow", "fault": "red"}
EXAMPLES: Final = """\b
Examples:
  pixrec doctor
  pixrec --config shop.toml doctor && pixrec --config shop.toml run
"""


@click.command(epilog=EXAMPLES)
def doctor() -> None:
    """Check this machine: settings, raw files, folders, disk, Dagster, PyTorch, network.

    Of local tables the first rows are shown as a run would read them: header, delimiter, sample values of each mapped
    column, times, and how many item ids of both tables match. Each line is ok, a warning or a fault, followed by how to
    fix it. The exit code is 1 if there is a fault. Only hosts that a run would need are contacted.
    """
    from pixrec_assets import doctor as module  # imports requests and Polars

    faults = 0
    for finding in module.check_all():
        faults += finding.level == "fault"
        colour = COLOURS[finding.level]
        out.print(f"[{colour}]{finding.level:<8}[/] [bold]{escape(finding.subject)}[/]: {escape(finding.text)}")
        for line in finding.details:
            out.print(f"         {escape(line)}")
        if finding.fix:
            out.print(f"         -> {escape(finding.fix)}")
    if faults:
        out.print(f"[red]{faults} fault{'s' * (faults > 1)}[/]")
        sys.exit(1)
