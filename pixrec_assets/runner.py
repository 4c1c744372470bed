"""Run what is missing or stale, and continue past failures.

Whether a stage is stale depends on what its inputs became, so each is judged when its turn comes: a download of
unchanged bytes rebuilds nothing else. A stage whose input failed is skipped; all others run. Each build is a Dagster
run with its partition's tag. Dagster takes seconds to import and is not imported if everything is up to date.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from pixrec_assets.terminal import duration
from pixrec_assets.workers import Failure, Pool
from pixrec_core.errors import PixRecError
from pixrec_core.stages import StageInputs, StageRun


class State(StrEnum):
    """How a stage run ended."""

    BUILT = "built"
    CURRENT = "up to date"
    FAILED = "failed"
    SKIPPED = "skipped"
    STOPPED = "stopped"
    NOT_STARTED = "not started"


#: States after which the artefact can be read.
READABLE: Final = (State.BUILT, State.CURRENT)

COLOURS: Final = {
    State.FAILED: "red",
    State.SKIPPED: "yellow",
    State.STOPPED: "yellow",
    State.NOT_STARTED: "dim",
}


@dataclass(frozen=True)
class Outcome:
    """How one stage run ended.

    Attributes:
        run: the stage run.
        state: its state.
        seconds: duration of the build.
        failure: why it failed.
        detail: what else to print: which input failed, when the artefact was built.
    """

    run: StageRun
    state: State
    seconds: float = 0.0
    failure: Failure | None = None
    detail: str = ""


@dataclass
class Runner:
    """The stage runs of one call, and the outcome of each so far.

    Attributes:
        runs: stage runs, inputs first.
        pool: where they run.
        console: where progress is printed.
        force: whether current artefacts are built again.
    """

    runs: Sequence[StageRun]
    pool: Pool
    console: Console
    force: bool = False
    _waiting: dict[str, StageRun] = field(init=False)
    _running: dict[str, StageRun] = field(init=False, default_factory=dict)
    _outcomes: dict[str, Outcome] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._waiting = {str(run): run for run in self.runs}

    def run_all(self) -> list[Outcome]:
        """Run all stages and return their outcomes in the order of the plan.

        A signal (KeyboardInterrupt) stops running builds and starts no others; it is not raised again.
        """
        try:
            self._start_ready()
            while self._running:
                self._finish(*self.pool.wait())
                self._start_ready()
        except KeyboardInterrupt:
            stopped = [Outcome(run, State.STOPPED) for run in self._running.values()]
            stopped += [Outcome(run, State.NOT_STARTED) for run in self._waiting.values()]
            self._outcomes |= {str(outcome.run): outcome for outcome in stopped}
        finally:
            self.pool.stop()
        return [self._outcomes[str(run)] for run in self.runs]

    def _start_ready(self) -> None:
        """Settle or start the stage runs whose inputs are settled, in order, while a worker is free."""
        for key, run in list(self._waiting.items()):
            if not self.pool.free:
                return
            sources = list(run.stage.reads(run.work))
            if any(str(source) in self._waiting or str(source) in self._running for source in sources):
                continue
            if failed := next((source for source in sources if not self._is_readable(source)), None):
                detail = f": its input `{failed.stage.name}` of {failed.partition} failed"
                self._settle(Outcome(run, State.SKIPPED, detail=detail))
                continue
            inputs = None if self.force else _inspect(run)
            stamp = run.stage.stamp(run.work)
            if inputs and stamp and run.stage.is_current(run.work, inputs):
                self._settle(Outcome(run, State.CURRENT, detail=f" (built {stamp['finished_at']})"))
            else:
                self._print(run, "building ...")
                self._running[key] = self._waiting.pop(key)
                self.pool.start(run, inputs)

    def _is_readable(self, source: StageRun) -> bool:
        """Whether an input was built, or is not part of this call; then the stage reports it if it is missing."""
        return str(source) not in self._outcomes or self._outcomes[str(source)].state in READABLE

    def _finish(self, run: StageRun, failure: Failure | None) -> None:
        del self._running[str(run)]
        if failure:
            self._settle(Outcome(run, State.FAILED, failure=failure))
            return
        if stamp := run.stage.stamp(run.work):
            self._settle(Outcome(run, State.BUILT, stamp["seconds"], detail=f" in {duration(stamp['seconds'])}"))
        else:
            self._settle(Outcome(run, State.BUILT, detail="; another process is building it again"))

    def _settle(self, outcome: Outcome) -> None:
        self._waiting.pop(str(outcome.run), None)
        self._outcomes[str(outcome.run)] = outcome
        count = f" [dim]\\[{len(self._outcomes)}/{len(self.runs)}][/]"
        self._print(outcome.run, outcome.state.value + outcome.detail, count)
        if outcome.state in READABLE:
            self._print_promotion(outcome.run)

    def _print(self, run: StageRun, text: str, more: str = "") -> None:
        self.console.print(f"[bold]{run.stage.name}[/] {escape(run.partition)}: {escape(text)}{more}")

    def _print_promotion(self, run: StageRun) -> None:
        """Print the decision of `promoted`, in each call until another promotion passes."""
        stats = run.stage.stats(run.work)
        if "promoted" in stats:
            self.console.print(f"  [{'dim' if stats['promoted'] else 'yellow'}]{escape(stats['verdict'])}[/]")


def _inspect(run: StageRun) -> StageInputs | None:
    """The inputs of a stage run; None if they cannot be read."""
    try:
        return run.stage.inspect_inputs(run.work)
    except PixRecError:  # the build reports it
        return None


def summarise(outcomes: Sequence[Outcome]) -> Table:
    """Return a table with one row per partition: how many stages ended how, and the names of those that failed.

    The time is that of the stages that were built.
    """
    partitions: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        partitions.setdefault(outcome.run.partition, []).append(outcome)
    table = Table(Column("partition", no_wrap=True), "outcome", Column("time", justify="right"))
    for partition, group in partitions.items():
        seconds = sum(outcome.seconds for outcome in group)
        table.add_row(escape(partition), "\n".join(_count_states(group)), duration(seconds) if seconds else "")
    return table


def _count_states(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield one line per state: `3 built`, `1 failed: items`."""
    for state in State:
        names = [outcome.run.stage.name for outcome in outcomes if outcome.state is state]
        if names and state in READABLE:
            yield f"{len(names)} {state}"
        elif names:
            yield f"[{COLOURS[state]}]{len(names)} {state}: {', '.join(names)}[/]"
