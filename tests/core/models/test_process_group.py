"""Data-parallel training: the parts of a batch are the batch, and two processes compute the gradients of one."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from pixrec_core.engine import LOCAL
from pixrec_core.models.dual_tower import DualTower
from pixrec_core.models.items_layers import ItemIdEmbedding
from pixrec_core.models.loading import create_backbone
from pixrec_core.models.negatives import Negatives
from pixrec_core.models.process_group import SINGLE_PROCESS, RankInfo
from pixrec_core.models.windows import TrainingWindow
from pixrec_core.training.sharding import gathered_weights, shard
from tests.core.models import families
from tests.core.models.small import Small, small, tower_on, vectors

#: Item 0 has no text, item 1 a very long one, every fourth no photo; later items of a user are in other windows too.
WINDOWS = [
    TrainingWindow([1, 2, 3, 0]),
    TrainingWindow([5, 6, 1, 7], later=[2, 8]),
    TrainingWindow([3, 8]),
    TrainingWindow([9, 2, 5], later=[0]),
]
BATCHES = {
    "even": WINDOWS,
    "uneven": WINDOWS[:3],
    "one window": WINDOWS[1:2],
    "no photo": [TrainingWindow([4, 8, 12])] * 2,
}
TERMS = ("loss", "generation", "item_item", "user_item")


def collated(tower: Small, windows: list[TrainingWindow], rank_info: RankInfo, sampled: int = 6) -> dict:
    negatives = Negatives(np.ones(20, dtype=np.int64), sampled, seed=0)
    return dataclasses.replace(tower.collator, negatives=negatives, rank_info=rank_info)(windows)


@pytest.fixture(scope="module")
def tower() -> Small:
    return small()


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("windows", BATCHES.values(), ids=BATCHES)
def test_every_pair_and_item_of_a_batch_is_on_exactly_one_rank(tower: Small, windows, ranks: int) -> None:
    whole = collated(tower, windows, SINGLE_PROCESS)
    parts = [collated(tower, windows, RankInfo(rank, ranks)) for rank in range(ranks)]

    keys = {tuple(part["key_numbers"].tolist()) for part in parts}
    assert len(keys) == 1, "all ranks have the same keys in one order"
    (numbers,) = keys
    assert sorted(numbers) == sorted(whole["key_numbers"].tolist())
    offsets = dict(zip(whole["key_numbers"].tolist(), whole["key_offsets"].tolist(), strict=True))
    encoded = []
    for rank, part in enumerate(parts):
        assert part["key_offsets"].tolist() == [offsets[number] for number in numbers]
        encoded += part["item_numbers"][: part["keys_per_rank"][rank]].tolist()
        assert (part["pair_count"], part["label_count"]) == (len(whole["pair_rows"]), len(whole["label_rows"]))
    assert tuple(encoded) == numbers

    def pairs(batch: dict) -> Counter:
        keys = batch["key_numbers"]
        left_out = [{int(n) for p, n in batch["excluded"] if p == pair} for pair in range(len(batch["pair_rows"]))]
        return Counter(
            (int(keys[target]), frozenset(left)) for target, left in zip(batch["pair_targets"], left_out, strict=True)
        )

    assert sum((pairs(part) for part in parts), Counter()) == pairs(whole)
    assert sum(len(part["label_rows"]) for part in parts) == len(whole["label_rows"])


def test_an_item_is_encoded_on_the_rank_that_needs_its_photo(tower: Small) -> None:
    for rank, expected in enumerate(([1, 2, 3, 0], [5, 6, 7])):
        part = collated(tower, WINDOWS[:2], RankInfo(rank, 2), sampled=0)
        assert sorted(part["item_numbers"].tolist()) == sorted(expected), "item 1 of both histories goes to the first"


def trainable_tower(variant: str) -> Small:
    """A tower in training mode; item-id embeddings are random for `collaborative`."""
    tower = small("multimodal" if variant == "collaborative" else variant)
    if variant == "collaborative":
        tower.model.item_id_embedding = ItemIdEmbedding(20, 16, dropout=0.5)
        for table in (tower.model.item_id_embedding.history, tower.model.item_id_embedding.candidate):
            torch.nn.init.normal_(table.weight, generator=torch.Generator().manual_seed(1))
    tower.model.train()
    return tower


def with_ddp(model: DualTower) -> torch.nn.Module:
    return DistributedDataParallel(model, find_unused_parameters=True)


def with_fsdp(model: DualTower) -> torch.nn.Module:
    model.activation_checkpointing_enable()  # layers then run twice per step
    shard(model)
    return model


def compare(parallelise: Callable[[DualTower], torch.nn.Module], *, on_report) -> None:
    """Report the differences of losses and gradients from those of one process with the whole batch."""
    for variant in ("multimodal", "collaborative", "text_only"):
        compare_tower(variant, trainable_tower(variant), parallelise, on_report)


def compare_families(folders: dict[str, Path], *, on_report) -> None:
    """As `compare`, with FSDP, for every family. Ranks start with different heads; those of rank 0 are used."""
    for family, folder in folders.items():
        tower = tower_on(*create_backbone(str(folder), None, lambda: ()))
        compare_tower(family, tower, with_fsdp, on_report)


def compare_tower(name: str, tower: Small, parallelise: Callable[[DualTower], torch.nn.Module], on_report) -> None:
    rank_info = RankInfo.current()
    tower.model.train()
    reference, parallel = deepcopy(tower.model), parallelise(tower.model)
    for batch, windows in BATCHES.items():
        sampled = 0 if batch == "one window" else 6  # then the second rank has nothing to encode
        torch.manual_seed(0)  # of the item-id dropout
        whole = reference(**collated(tower, windows, SINGLE_PROCESS, sampled))
        whole.loss.backward()
        torch.manual_seed(rank_info.rank)
        part = parallel(**collated(tower, windows, rank_info, sampled))
        (part.loss * rank_info.world_size).backward()
        terms = torch.stack([part[term].detach() for term in TERMS])
        distributed.all_reduce(terms)
        expected = torch.stack([whole[term].detach() for term in TERMS])
        pairs = list(zip(gradients(reference), gradients(tower.model), strict=True))
        on_report(
            {
                "batch": f"{name}, {batch}",
                "terms": float((terms / expected - 1).abs().max()),
                "gradients": max(distance(one, two) for one, two in pairs),
                "trained": sum(one is not None for one, _ in pairs),
                "fraction": local_fraction(tower.model),
            }
        )
        for model in (reference, parallel):
            model.zero_grad()
        with gathered_weights(tower.model), torch.inference_mode():
            if rank_info.rank == 0:  # as one rank encodes a small catalogue
                vectors(tower.model, tower.collator, [1, 2])


def local_fraction(model: torch.nn.Module) -> float:
    """Fraction of a model's weights that this rank holds."""
    weights = list(model.parameters())
    local = sum((each.to_local() if isinstance(each, DTensor) else each).numel() for each in weights)
    return local / sum(each.numel() for each in weights)


def gradients(model: torch.nn.Module) -> list[torch.Tensor | None]:
    found = [weight.grad for weight in model.parameters()]
    return [each.full_tensor() if isinstance(each, DTensor) else each for each in found]


def distance(one: torch.Tensor | None, two: torch.Tensor | None) -> float:
    """Largest difference relative to the largest gradient, or to 1e-4: those of a bias of keys are rounding errors."""
    if one is None or two is None:
        return 0.0 if one is two else float("inf")
    return float((one - two).abs().max() / one.abs().max().clamp(min=1e-4))


@pytest.mark.slow
@pytest.mark.parametrize(("parallelise", "max_fraction"), [(with_ddp, 1), (with_fsdp, 0.55)])
def test_two_processes_have_the_losses_and_gradients_of_one(parallelise, max_fraction: float) -> None:
    reports = []
    LOCAL.run_process_group(partial(compare, parallelise), 2, reports.append)
    assert len(reports) == 3 * len(BATCHES)
    assert all(each["terms"] < 1e-5 for each in reports), reports
    assert all(each["gradients"] < 1e-4 for each in reports), reports
    assert all(each["trained"] > 20 for each in reports)
    assert all(0.45 < each["fraction"] <= max_fraction for each in reports), reports


@pytest.mark.slow
def test_two_processes_with_fsdp_have_the_gradients_of_one_for_every_family(tmp_path: Path) -> None:
    folders = {family: tmp_path / family for family in families.FAMILIES}
    for family, folder in folders.items():
        families.save(family, folder)
    reports = []
    LOCAL.run_process_group(partial(compare_families, folders), 2, reports.append)
    assert len(reports) == len(folders) * len(BATCHES)
    assert all(each["terms"] < 1e-4 for each in reports), reports
    assert all(each["gradients"] < 1e-3 for each in reports), reports
    assert all(each["fraction"] < 0.6 for each in reports), reports
