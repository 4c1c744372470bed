"""Training examples per second: PixRec against a straightforward implementation of the same objective.

The straightforward one has one (history, target) pair per example. In each step it decodes the JPEGs of all photos,
encodes them, encodes each target on its own, and computes logits at every position. Both train the same backbone from
the same weights on the same sequences, in turns in one process.

    python -m benchmarks.training [--rounds 5] [--steps 8] [--users 300]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import set_seed

from benchmarks.generated_shop import DATA_STAGES, open_shop
from pixrec_core import losses, prompts, schemas
from pixrec_core.data.images import open_photo
from pixrec_core.data.sequences import read_sequences
from pixrec_core.models.dual_tower import DualTower
from pixrec_core.models.item_inputs import NO_PHOTO
from pixrec_core.models.photo_store import pixel_store
from pixrec_core.models.tower_inputs import TowerInputs
from pixrec_core.models.windows import TrainingWindows
from pixrec_core.stages import Work
from pixrec_core.training import build_tower
from pixrec_core.training.batches import OneDatasetBatchSampler


class Straightforward:
    """One pair per example; examples share no computation, and nothing is cached."""

    def __init__(self, work: Work, model: DualTower, inputs: TowerInputs) -> None:
        self._work, self._model, self._inputs = work, model, inputs

    def loss(self, examples: list[tuple[list[int], int]]) -> torch.Tensor:
        """Return the mixed loss of (history, target) examples; the negatives are the other targets of the batch."""
        encoded = [self._encode_pair(history, target) for history, target in examples]
        users, targets_in_history, generation = (torch.stack(column) for column in zip(*encoded, strict=True))
        targets = torch.stack([self._encode_item(target) for _, target in examples])
        numbers = torch.tensor([target for _, target in examples])
        negatives = numbers[:, None] != numbers[None, :]
        answers, tau = torch.arange(len(examples)), self._model.config.tau
        item_item = losses.info_nce(targets_in_history, targets, answers, negatives, tau)
        user_item = losses.info_nce(users, targets, answers, negatives, tau)
        return losses.mix(generation.mean(), item_item, user_item, 0.125, 0.3)

    def _encode_pair(self, history: list[int], target: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ids: list[int] = []
        for n, number in enumerate([*history, target]):
            ids += self._inputs.processor.text_ids(prompts.NEXT if n else prompts.FIRST)
            start = len(ids)
            ids += self._inputs.inputs[number].ids.tolist()
        outputs = self._forward(ids, [*history, target])
        hidden, text = outputs.hidden_states[-1][0], self._inputs.inputs[target].text_length
        user = functional.normalize(self._model.user_head(hidden[:start].mean(0)), dim=-1)
        item = functional.normalize(self._model.item_head(hidden[start:].mean(0)), dim=-1)
        labels = torch.tensor(ids[start : start + text])
        return user, item, losses.next_item_generation(outputs.logits[0, start - 1 : start - 1 + text], labels)

    def _encode_item(self, target: int) -> torch.Tensor:
        hidden = self._forward(self._inputs.inputs[target].ids.tolist(), [target]).hidden_states[-1][0]
        return functional.normalize(self._model.item_head(hidden.mean(0)), dim=-1)

    def _forward(self, ids: list[int], numbers: list[int]) -> Any:
        photos = [n for n in numbers if self._inputs.inputs.photo_rows[n] != NO_PHOTO]
        decode = self._inputs.processor.pixels
        pixels = [decode(open_photo(self._work.paths, self._inputs.items[n])) for n in photos]
        return self._model.backbone(
            input_ids=torch.tensor([ids]),
            pixel_values=torch.cat(pixels, dim=1) if pixels else None,
            output_hidden_states=True,
        )


def main() -> None:
    """Print the examples per second of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="training steps per round")
    parser.add_argument("--users", type=int, default=300)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare_rates(open_shop(Path(folder), options.users, DATA_STAGES), options.rounds, options.steps)


def compare_rates(work: Work, rounds: int, steps: int) -> None:
    """Time both implementations in turns."""
    settings = work.dataset_settings.training
    set_seed(0)
    model, (inputs,) = build_tower(work.dataset_settings.model, settings, [work.variant_paths])
    model.train()
    sequences = inputs.numbers(read_sequences(work.paths, schemas.TRAIN)[schemas.ITEMS])
    windows = TrainingWindows(sequences, settings.max_history_len, seed=0)
    batches = list(OneDatasetBatchSampler([windows], settings.batch_size, seed=0))
    assert inputs.pixels, "the sample has photos"
    collator, plain = inputs.collator(pixel_store(inputs.pixels)), Straightforward(work, model, inputs)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def batch(step: int) -> list[Any]:
        return [windows[n] for n in batches[step % len(batches)]]

    def ours(step: int) -> int:
        taken = batch(step)
        _step(optimiser, lambda: model(**collator(taken)).loss)
        return sum(len(window.items) - 1 for window in taken)

    def straightforward(step: int) -> int:
        examples = [(list(w[:n]), w[n]) for w, _ in batch(step) for n in range(1, len(w))][: settings.batch_size]
        _step(optimiser, lambda: plain.loss(examples))
        return len(examples)

    rates: dict[str, list[float]] = {"pixrec": [], "straightforward": []}
    for round_ in range(rounds):
        for name, run in (("pixrec", ours), ("straightforward", straightforward)):
            start = time.perf_counter()
            done = sum(run(round_ * steps + step) for step in range(steps))
            rates[name].append(done / (time.perf_counter() - start))
    for name, each in rates.items():
        print(f"{name:16} {statistics.median(each):8.1f} examples/s  ({min(each):.1f} to {max(each):.1f})")
    ratios = [a / b for a, b in zip(*rates.values(), strict=True)]
    print(f"ratio            {statistics.median(ratios):8.1f}x            ({min(ratios):.1f} to {max(ratios):.1f})")


def _step(optimiser: torch.optim.Optimizer, loss: Callable[[], torch.Tensor]) -> None:
    optimiser.zero_grad()
    loss().backward()
    optimiser.step()


if __name__ == "__main__":
    main()
