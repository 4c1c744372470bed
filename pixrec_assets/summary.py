"""What came of a backfill: one row a partition."""

from collections.abc import Sequence
from typing import Final

from rich.markup import escape
from rich.table import Column, Table

from pixrec_assets.backfill import READABLE, Outcome, State
from pixrec_assets.running import key_of

COLOURS: Final = {State.FAILED: "red", State.SKIPPED: "yellow", State.STOPPED: "yellow", State.NOT_BEGUN: "dim"}


def summary(outcomes: Sequence[Outcome]) -> Table:
    """A table of the partitions in their order: how many tasks ended how, the names of those that were not made."""
    places: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        places.setdefault(key_of(outcome.task)[1], []).append(outcome)
    table = Table(Column("partition", no_wrap=True), "outcome", Column("seconds", justify="right"))
    for place, group in places.items():
        seconds = sum(outcome.seconds for outcome in group)
        table.add_row(escape(place), "\n".join(_lines(group)), f"{seconds:.1f}")
    return table


def _lines(outcomes: Sequence[Outcome]) -> list[str]:
    """One line a state that occurs: `3 made`, `1 failed: items`."""
    lines = []
    for state in State:
        names = [key_of(outcome.task)[0] for outcome in outcomes if outcome.state is state]
        if names and state in READABLE:
            lines.append(f"{len(names)} {state}")
        elif names:
            lines.append(f"[{COLOURS[state]}]{len(names)} {state}: {', '.join(names)}[/]")
    return lines
