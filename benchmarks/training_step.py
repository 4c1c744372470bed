"""Time of each part of a training step, and the share of padding tokens.

    python -m benchmarks.training_step [--users 600] [--item-tokens 16]

Trains `tiny` on the generated shop for one epoch by the checkpoint stage, with a clock around each part of a step.
Prints the median step, the median of each part, and its share. For CPUs only: such a clock does not see work that is
queued for a GPU.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from transformers import Trainer

from benchmarks.generated_shop import open_shop
from pixrec_core import pipeline
from pixrec_core.models.collate import Collator
from pixrec_core.models.dual_tower import DualTower

ITEM_TOWER, HISTORY_TOWER, REST = "item tower", "history tower", "rest of the Trainer"

#: Name of each part -> its method; the time of inner parts is not counted.
PARTS: dict[str, tuple[type, str]] = {
    "collate, load photos": (Collator, "__call__"),
    "vision tower": (DualTower, "photo_features"),
    ITEM_TOWER: (DualTower, "item_vectors"),
    HISTORY_TOWER: (DualTower, "hidden_states"),
    "losses, language-model head": (DualTower, "forward"),
    "backward": (Trainer, "training_step"),
    "gradient norm": (Accelerator, "clip_grad_norm_"),
    "optimiser": (AcceleratedOptimizer, "step"),
}


class Clock:
    """Measures the seconds of each part of each step; a step ends when the optimiser has run."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.tokens: dict[str, list[int]] = {"history": [0, 0], "item": [0, 0]}
        self._parts: defaultdict[str, float] = defaultdict(float)
        self._running: list[str] = []
        self._since = self._start = time.perf_counter()

    def install(self) -> None:
        """Put the clock around every part."""
        for name, (owner, method) in PARTS.items():
            setattr(owner, method, self._timed(name, getattr(owner, method)))

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            inner = ITEM_TOWER if ITEM_TOWER in self._running and name == HISTORY_TOWER else name
            self._switch(lambda: self._running.append(inner))
            result = call(*args, **kwargs)
            self._switch(self._running.pop)
            if isinstance(args[0], Collator):
                self._count(result)
            if isinstance(args[0], AcceleratedOptimizer):
                self._end_step()
            return result

        return timed

    def _switch(self, change: Callable[[], Any]) -> None:
        """Add the time since the last switch to the current part, then change the current part."""
        now = time.perf_counter()
        self._parts[self._running[-1] if self._running else REST] += now - self._since
        change()
        self._since = time.perf_counter()

    def _count(self, batch: dict[str, Any]) -> None:
        for kind, (read, padded) in self.tokens.items():
            ids = batch[f"{kind}_ids"]
            self.tokens[kind] = [read + int((ids != 0).sum()), padded + ids.numel()]  # 0 is padding

    def _end_step(self) -> None:
        self.steps.append({**self._parts, "step": time.perf_counter() - self._start})
        self._parts.clear()
        self._start = time.perf_counter()


def print_times(clock: Clock, warm_up: int) -> None:
    """Print one line per part, the longest first."""
    steps = clock.steps[warm_up:]
    whole = statistics.median(step["step"] for step in steps)
    print(f"median step of {len(steps)}: {1000 * whole:.0f} ms, {torch.get_num_threads()} threads")
    medians = {name: statistics.median(step.get(name, 0.0) for step in steps) for name in [*PARTS, REST]}
    for name, seconds in sorted(medians.items(), key=lambda part: -part[1]):
        print(f"  {name:28} {1000 * seconds:7.1f} ms {100 * seconds / whole:5.1f} %")
    for kind, (read, padded) in clock.tokens.items():
        print(f"  {kind} tokens: {read:,}, {100 * (1 - read / padded):.1f} % padding")


def main() -> None:
    """Train with the clock and print times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=600)
    parser.add_argument("--item-tokens", type=int, default=16)
    parser.add_argument("--warm-up", type=int, default=5, help="steps that are not counted")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = open_shop(Path(folder), given.users, pipeline.DATA, model={"item_tokens": given.item_tokens})
        clock = Clock()
        clock.install()
        pipeline.CHECKPOINT.materialise(work)
        print_times(clock, given.warm_up)


if __name__ == "__main__":
    main()
