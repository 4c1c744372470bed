"""Training examples per second of both user encoders, and items per second of encoding the catalogue.

All train on the same sequences, in turns in one process, each with its default settings. `tokens` and `items` with
`item_encoder = "backbone"` train the backbone `tiny`. The straightforward one has one (history, target) pair per
example. In each step it decodes the JPEGs of all photos, encodes them, encodes each target on its own, and computes
logits at every position.

Then all items are encoded: by `tokens` from texts and photo files, and by `items` from them too (the stage
`item_features` and the tower). `--rounds` applies to both.

    python -m benchmarks.training [--rounds 5] [--steps 8] [--users 3000]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import set_seed

from benchmarks.generated_shop import open_shop
from pixrec_core import files, losses, pipeline, prompts, schemas
from pixrec_core.data.images import open_photo
from pixrec_core.data.sequences import read_items
from pixrec_core.engine import LOCAL
from pixrec_core.models.dual_tower import DualTower
from pixrec_core.models.encoders.build import build_item_features
from pixrec_core.models.frozen_features import feature_table, variant_features
from pixrec_core.models.item_inputs import NO_PHOTO
from pixrec_core.models.negatives import Negatives
from pixrec_core.models.photo_store import PhotoFiles, pixel_store
from pixrec_core.models.tower_inputs import TowerInputs
from pixrec_core.models.windows import TrainingWindows
from pixrec_core.retrieval.encode import ItemsEncoder
from pixrec_core.retrieval.token_encoder import Encoder
from pixrec_core.settings import DatasetSettings, Settings
from pixrec_core.stages import Work
from pixrec_core.training import build_tower, items
from pixrec_core.training.batches import OneDatasetBatchSampler
from pixrec_core.training.prepared import read_windows


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
    """Print the examples per second of each, and their ratio to `tokens`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="training steps per round")
    parser.add_argument("--users", type=int, default=3000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = open_shop(Path(folder), options.users, pipeline.DATA)
        compare_training(work, options.rounds, options.steps)
        compare_encoding(work, options.rounds)


def compare_training(work: Work, rounds: int, steps: int) -> None:
    """Time training steps of all implementations in turns."""
    runs = {
        "tokens": _tokens(work),
        "items, tiny": _items(work, "backbone"),
        "items, frozen": _items(work, "frozen"),
        "straightforward": _straightforward(work),
    }

    def several(run: Callable[[int], int]) -> Callable[[int], int]:
        return lambda round_: sum(run(round_ * steps + step) for step in range(steps))

    _compare({name: several(run) for name, run in runs.items()}, rounds, "examples")


def compare_encoding(work: Work, rounds: int) -> None:
    """Time encoding of all items by both user encoders in turns."""
    ids = read_items(work.paths)[schemas.ITEM].to_list()
    tokens, inputs, _, _ = _tokens_data(work)
    settings = _items_settings(work, "frozen")
    frozen = items.build_items_tower(settings.model, settings.training, work.variant_paths)[0].eval()

    def by_tokens(_round: int) -> int:
        return len(Encoder(tokens.eval(), inputs, None).item_vectors())

    def by_items(_round: int) -> int:
        files.remove(work.paths.item_features)  # it would keep the vectors of known photos
        build_item_features(settings.model, work.paths, LOCAL)
        table = feature_table(frozen, variant_features(work.variant_paths))
        return len(ItemsEncoder.encode(frozen, ids, table).item_vectors())

    _compare({"tokens": by_tokens, "items, frozen": by_items}, rounds, "items")


def _compare(runs: Mapping[str, Callable[[int], int]], rounds: int, unit: str) -> None:
    """Print how much each run does per second, and its ratio to `tokens`; a run gets the number of the round."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            done = run(round_)
            rates[name].append(done / (time.perf_counter() - start))
    for name, each in rates.items():
        ratios = [rate / tokens for rate, tokens in zip(each, rates["tokens"], strict=True)]
        print(
            f"{name:16} {statistics.median(each):8.1f} {unit}/s  ({min(each):.1f} to {max(each):.1f})"
            f"{statistics.median(ratios):8.2f}x  ({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )


def _tokens(work: Work) -> Callable[[int], int]:
    """Return a function that trains one step of `tokens` and returns its number of examples."""
    model, inputs, windows, batches = _tokens_data(work)
    collator = inputs.collator(pixel_store(_pixels(inputs)), _negatives(work))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def run(step: int) -> int:
        taken = [windows[n] for n in batches[step % len(batches)]]
        _step(optimiser, lambda: model(**collator(taken)).loss)
        return sum(len(window.items) - 1 for window in taken)

    return run


def _items(work: Work, item_encoder: str) -> Callable[[int], int]:
    """Return the same for `items`."""
    given = _items_settings(work, item_encoder)
    set_seed(0)
    prepared = items.prepare(given.model, given.training, {"sample": work.variant_paths}, LOCAL)
    model, windows = prepared.model.train(), prepared.windows
    batches = list(windows.batch_sampler(given.training.batch_size, seed=0))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def run(step: int) -> int:
        taken = [windows[n] for n in batches[step % len(batches)]]
        _step(optimiser, lambda: model(**windows.collate(taken)).loss)
        return sum(len(window.items) - 1 for _, window in taken)

    return run


def _items_settings(work: Work, item_encoder: str) -> DatasetSettings:
    """Return the settings of `items` for the same data."""
    source = work.dataset_settings.source.model_dump()
    dataset = {"source": source, "model": {"item_tokens": 16, "item_encoder": item_encoder}}
    root, data = work.settings.root, work.settings.data_dir
    return Settings(root=root, data_dir=data, datasets={"sample": dataset}).dataset("sample")


def _straightforward(work: Work) -> Callable[[int], int]:
    """Return the same for the straightforward implementation."""
    model, inputs, windows, batches = _tokens_data(work)
    plain, size = Straightforward(work, model, inputs), work.dataset_settings.training.batch_size
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def run(step: int) -> int:
        taken = [windows[n].items for n in batches[step % len(batches)]]
        examples = [(list(each[:n]), each[n]) for each in taken for n in range(1, len(each))][:size]
        _step(optimiser, lambda: plain.loss(examples))
        return len(examples)

    return run


def _tokens_data(work: Work) -> tuple[DualTower, TowerInputs, TrainingWindows, list[list[int]]]:
    settings = work.dataset_settings.training
    set_seed(0)
    model, (inputs,) = build_tower(work.dataset_settings.model, settings, [work.variant_paths])
    windows = read_windows("sample", work.variant_paths, settings)
    batches = list(OneDatasetBatchSampler([windows], settings.batch_size, seed=0))
    return model.train(), inputs, windows, batches


def _negatives(work: Work) -> Negatives:
    counts = read_items(work.paths)[schemas.TRAIN_COUNT].to_numpy()
    return Negatives(counts, work.dataset_settings.training.num_sampled_negatives, seed=0)


def _pixels(inputs: TowerInputs) -> PhotoFiles:
    assert inputs.pixels, "the sample has photos"
    return inputs.pixels


def _step(optimiser: torch.optim.Optimizer, loss: Callable[[], torch.Tensor]) -> None:
    optimiser.zero_grad()
    loss().backward()
    optimiser.step()


if __name__ == "__main__":
    main()
