"""Make what is stale in a set of partitions, whatever fails beside it.

An asset's own run decides whether the next one is stale, so each is asked when its turn comes: a
download that brought the same bytes again makes nothing else run. What reads a task that failed is
left out; all else goes on. Each task is a Dagster run with its partition's tag; Dagster takes
seconds to import and is left out where all is current.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from rich.console import Console
from rich.markup import escape

from pixrec_assets.running import Fault, Key, Task, key_of
from pixrec_assets.workers import Pool


class State(StrEnum):
    """What came of a task."""

    MADE = "made"
    CURRENT = "up to date"
    FAILED = "failed"
    SKIPPED = "skipped"
    STOPPED = "stopped"
    NOT_BEGUN = "not begun"


#: States after which the artefact may be read.
READABLE = (State.MADE, State.CURRENT)


@dataclass(frozen=True)
class Outcome:
    """What came of one task.

    Attributes:
        task: which.
        state: how it ended.
        seconds: of its run.
        fault: why it failed.
        lacking: of a skipped one, the first input that was not made.
    """

    task: Task
    state: State
    seconds: float = 0.0
    fault: Fault | None = None
    lacking: Key | None = None


class Backfill:
    """The tasks of one call, and what came of each so far."""

    def __init__(self, tasks: Sequence[Task], pool: Pool, console: Console, *, force: bool) -> None:
        self._waiting = {key_of(task): task for task in tasks}
        self._order = list(self._waiting)
        self._running: dict[Key, Task] = {}
        self._done: dict[Key, Outcome] = {}
        self._pool, self._console, self._force = pool, console, force

    def run(self) -> list[Outcome]:
        """Run all and return what came of each task, in their order.

        A signal ends what is under way, and the rest is not begun; it is not raised on.
        """
        try:
            self._begin_what_can()
            while self._running:
                self._end(*self._pool.wait())
                self._begin_what_can()
        except KeyboardInterrupt:
            self._interrupt()
        finally:
            self._pool.stop()
        return [self._done[key] for key in self._order]

    def _begin_what_can(self) -> None:
        """Settle or start the tasks whose inputs are settled, in order, for as long as a worker is free."""
        for key, task in list(self._waiting.items()):
            if not self._pool.free:
                return
            if any(each in self._waiting or each in self._running for each in _inputs(task)):
                continue
            if lacking := next((each for each in _inputs(task) if not self._is_readable(each)), None):
                self._settle(Outcome(task, State.SKIPPED, lacking=lacking))
            elif not self._force and (made := _made_at(task)):
                self._settle(Outcome(task, State.CURRENT), f" (made {made})")
            else:
                self._say(task, "materialising ...")
                self._running[key] = self._waiting.pop(key)
                self._pool.start(task)

    def _is_readable(self, key: Key) -> bool:
        """Whether an input was made, or is none of this call's tasks; then the stage itself says if it lacks it."""
        return key not in self._done or self._done[key].state in READABLE

    def _end(self, task: Task, fault: Fault | None) -> None:
        del self._running[key_of(task)]
        stage, work = task
        if fault:
            self._settle(Outcome(task, State.FAILED, fault=fault))
            return
        stamp = stage.stamp(work)
        assert stamp is not None, "a stage that finished leaves its stamp"
        self._settle(Outcome(task, State.MADE, stamp["seconds"]))

    def _settle(self, outcome: Outcome, more: str = "") -> None:
        key = key_of(outcome.task)
        self._waiting.pop(key, None)
        self._done[key] = outcome
        told = outcome.state.value + more
        if outcome.state is State.MADE:
            told = f"done in {outcome.seconds:.1f} s"
        elif outcome.lacking:
            told += f", for want of {' '.join(outcome.lacking)}"
        self._say(outcome.task, told, settled=True)
        if outcome.state in READABLE:
            self._say_verdict(outcome.task)

    def _say(self, task: Task, told: str, *, settled: bool = False) -> None:
        name, place = key_of(task)
        count = f" [dim]\\[{len(self._done)}/{len(self._order)}][/]" if settled else ""
        self._console.print(f"[bold]{name}[/] {escape(place)}: {escape(told)}{count}")

    def _say_verdict(self, task: Task) -> None:
        """What the gate before serving decided; a refusal is repeated in each run until another checkpoint passes."""
        stage, work = task
        stats = (stage.stamp(work) or {}).get("stats", {})
        if "promoted" in stats:
            colour = "dim" if stats["promoted"] else "yellow"
            self._console.print(f"  [{colour}]{escape(stats['verdict'])}[/]")

    def _interrupt(self) -> None:
        for key, task in self._running.items():
            self._done[key] = Outcome(task, State.STOPPED)
        for key, task in self._waiting.items():
            self._done[key] = Outcome(task, State.NOT_BEGUN)


def _inputs(task: Task) -> Iterator[Key]:
    stage, work = task
    return (key_of(each) for each in stage.reads(work))


def _made_at(task: Task) -> str | None:
    """When a current artefact was made; None where it is missing or stale."""
    stage, work = task
    stamp = stage.stamp(work)
    return stamp["finished_at"] if stamp and stage.is_current(work) else None
