"""Shares of a batch: together they are the batch, and what two processes learn of it is what one learns."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from pixrec_core.engine import LOCAL
from pixrec_core.models.dual_tower import DualTower, ItemIdEmbedding
from pixrec_core.models.loading import create_backbone
from pixrec_core.models.negatives import Negatives
from pixrec_core.models.process_group import SINGLE_PROCESS, RankInfo, all_reduce_sum
from pixrec_core.models.windows import TrainingWindow
from pixrec_core.training.sharding import gathered_weights, shard
from tests.core.models import families
from tests.core.models.small import Small, small, tower_on, vectors

#: Item 0 has no text, item 1 a very long one, every fourth no photo; what a user takes later others take too.
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
def test_every_pair_and_item_of_a_batch_is_read_by_one_process(tower: Small, windows, ranks: int) -> None:
    whole = collated(tower, windows, SINGLE_PROCESS)
    shares = [collated(tower, windows, RankInfo(rank, ranks)) for rank in range(ranks)]

    keys = {tuple(share["key_numbers"].tolist()) for share in shares}
    assert len(keys) == 1, "all compare the same items in one order"
    (numbers,) = keys
    assert sorted(numbers) == sorted(whole["key_numbers"].tolist())
    offsets = dict(zip(whole["key_numbers"].tolist(), whole["key_offsets"].tolist(), strict=True))
    read = []
    for rank, share in enumerate(shares):
        assert share["key_offsets"].tolist() == [offsets[number] for number in numbers]
        read += share["item_numbers"][: share["keys_per_rank"][rank]].tolist()
        assert (share["pair_count"], share["label_count"]) == (len(whole["pair_rows"]), len(whole["label_rows"]))
    assert tuple(read) == numbers

    def pairs(batch: dict) -> Counter:
        keys = batch["key_numbers"]
        left_out = [{int(n) for p, n in batch["excluded"] if p == pair} for pair in range(len(batch["pair_rows"]))]
        return Counter(
            (int(keys[target]), frozenset(left)) for target, left in zip(batch["pair_targets"], left_out, strict=True)
        )

    assert sum((pairs(share) for share in shares), Counter()) == pairs(whole)
    assert sum(len(share["label_rows"]) for share in shares) == len(whole["label_rows"])


def test_an_item_is_read_where_its_photo_is_read_anyway(tower: Small) -> None:
    for rank, own in enumerate(([1, 2, 3, 0], [5, 6, 7])):
        share = collated(tower, WINDOWS[:2], RankInfo(rank, 2), sampled=0)
        assert sorted(share["item_numbers"].tolist()) == sorted(own), "item 1 of both histories goes to the first"


def taught(variant: str) -> Small:
    """A tower of which every part has something to learn."""
    tower = small("multimodal" if variant == "collaborative" else variant)
    if variant == "collaborative":
        tower.model.item_id_embedding = ItemIdEmbedding(20, 16, dropout=0.5)
        for table in (tower.model.item_id_embedding.history, tower.model.item_id_embedding.candidate):
            torch.nn.init.normal_(table.weight, generator=torch.Generator().manual_seed(1))
    tower.model.train()
    return tower


def in_copies(model: DualTower) -> torch.nn.Module:
    return DistributedDataParallel(model, find_unused_parameters=True)


def in_parts(model: DualTower) -> torch.nn.Module:
    model.activation_checkpointing_enable()  # layers then run twice
    shard(model)
    return model


def compare(spread: Callable[[DualTower], torch.nn.Module], *, on_report) -> None:
    """In each of two processes: how far losses and gradients are from those of the whole batch in one."""
    for variant in ("multimodal", "collaborative", "text_only"):
        compare_tower(variant, taught(variant), spread, on_report)


def compare_families(folders: dict[str, Path], *, on_report) -> None:
    """The same, for every family of backbones, in parts. Heads are drawn apart: those of the first process count."""
    for family, folder in folders.items():
        tower = tower_on(*create_backbone(str(folder), None, lambda: ()))
        compare_tower(family, tower, in_parts, on_report)


def compare_tower(what: str, tower: Small, spread: Callable[[DualTower], torch.nn.Module], on_report) -> None:
    rank_info = RankInfo.current()
    tower.model.train()
    alone, together = deepcopy(tower.model), spread(tower.model)
    for name, windows in BATCHES.items():
        sampled = 0 if name == "one window" else 6  # then the second process has nothing at all to read
        torch.manual_seed(0)  # of the residuals that drop out
        whole = alone(**collated(tower, windows, SINGLE_PROCESS, sampled))
        whole.loss.backward()
        torch.manual_seed(rank_info.rank)
        part = together(**collated(tower, windows, rank_info, sampled))
        (part.loss * rank_info.world_size).backward()
        terms = all_reduce_sum(torch.stack([part[term].detach() for term in TERMS]))
        expected = torch.stack([whole[term].detach() for term in TERMS])
        pairs = list(zip(gradients(alone), gradients(tower.model), strict=True))
        on_report(
            {
                "batch": f"{what}, {name}",
                "terms": float((terms / expected - 1).abs().max()),
                "gradients": max(distance(one, two) for one, two in pairs),
                "learning": sum(one is not None for one, _ in pairs),
                "held": held(tower.model),
            }
        )
        for model in (alone, together):
            model.zero_grad()
        with gathered_weights(tower.model), torch.inference_mode():
            if rank_info.rank == 0:  # a small catalogue gives one process all that there is to encode
                vectors(tower.model, tower.collator, [1, 2])


def held(model: torch.nn.Module) -> float:
    """The part of a model's weights that this process has."""
    weights = list(model.parameters())
    here = sum((each.to_local() if isinstance(each, DTensor) else each).numel() for each in weights)
    return here / sum(each.numel() for each in weights)


def gradients(model: torch.nn.Module) -> list[torch.Tensor | None]:
    found = [weight.grad for weight in model.parameters()]
    return [each.full_tensor() if isinstance(each, DTensor) else each for each in found]


def distance(one: torch.Tensor | None, two: torch.Tensor | None) -> float:
    """Largest difference as a share of the largest number. A bias of keys learns nothing but rounding errors."""
    if one is None or two is None:
        return 0.0 if one is two else float("inf")
    return float((one - two).abs().max() / one.abs().max().clamp(min=1e-4))


@pytest.mark.slow
@pytest.mark.parametrize(("spread", "most"), [(in_copies, 1), (in_parts, 0.55)])
def test_losses_and_gradients_of_two_processes_are_those_of_one_with_the_whole_batch(spread, most: float) -> None:
    told = []
    LOCAL.run_process_group(partial(compare, spread), 2, told.append)
    assert len(told) == 3 * len(BATCHES)
    assert all(each["terms"] < 1e-5 for each in told), told
    assert all(each["gradients"] < 1e-4 for each in told), told
    assert all(each["learning"] > 20 for each in told)
    assert all(0.45 < each["held"] <= most for each in told), told


@pytest.mark.slow
def test_so_they_are_for_every_family_in_parts(tmp_path: Path) -> None:
    folders = {family: tmp_path / family for family in families.FAMILIES}
    for family, folder in folders.items():
        families.save(family, folder)
    told = []
    LOCAL.run_process_group(partial(compare_families, folders), 2, told.append)
    assert len(told) == len(folders) * len(BATCHES)
    assert all(each["terms"] < 1e-4 for each in told), told
    assert all(each["gradients"] < 1e-3 for each in told), told
    assert all(each["held"] < 0.6 for each in told), told
