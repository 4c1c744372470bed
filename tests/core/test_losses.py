"""Losses, compared with values computed by hand or in plain Python."""

import math

import pytest
import torch
from torch.nn import functional

from pixrec_core import losses


def test_info_nce_on_zero_vectors_is_the_log_of_the_batch() -> None:
    keys, queries = torch.zeros(8, 4), torch.zeros(5, 4)
    loss = losses.info_nce(queries, keys, torch.arange(5), torch.ones(5, 8, dtype=torch.bool), 0.07)
    assert loss.item() == pytest.approx(math.log(8))


def test_info_nce_counts_only_the_allowed_negatives() -> None:
    keys, queries = torch.zeros(8, 4), torch.zeros(1, 4)
    negatives = torch.zeros(1, 8, dtype=torch.bool)
    negatives[0, [2, 3]] = True
    assert losses.info_nce(queries, keys, torch.tensor([0]), negatives, 0.07).item() == pytest.approx(math.log(3))


def test_info_nce_equals_plain_python() -> None:
    generator = torch.Generator().manual_seed(0)
    queries = functional.normalize(torch.randn(4, 6, generator=generator), dim=-1)
    keys = functional.normalize(torch.randn(5, 6, generator=generator), dim=-1)
    targets, tau = [0, 3, 3, 4], 0.2
    negatives = torch.rand(4, 5, generator=generator) > 0.4
    expected = 0.0
    for m, target in enumerate(targets):
        weights = {i: math.exp(float(queries[m] @ keys[i]) / tau) for i in range(5) if negatives[m, i] or i == target}
        expected -= math.log(weights[target] / sum(weights.values())) / 4
    assert losses.info_nce(queries, keys, torch.tensor(targets), negatives, tau).item() == pytest.approx(
        expected, rel=1e-5
    )


def test_a_masked_key_gets_no_gradient() -> None:
    keys = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    negatives = torch.tensor([[True, True, False]])
    losses.info_nce(torch.ones(1, 4), keys, torch.tensor([0]), negatives, 1.0).backward()
    assert keys.grad is not None
    assert keys.grad[2].abs().sum() == 0
    assert keys.grad[1].abs().sum() > 0


def test_generation_of_uniform_logits_is_the_log_of_the_vocabulary() -> None:
    assert losses.next_item_generation(torch.zeros(3, 50), torch.tensor([1, 2, 3])).item() == pytest.approx(
        math.log(50)
    )


def test_generation_of_nothing_is_zero_and_keeps_the_graph() -> None:
    logits = torch.zeros(0, 50, requires_grad=True)
    loss = losses.next_item_generation(logits, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0


def test_mix_weighs_the_three_terms() -> None:
    one, ten, hundred = (torch.tensor(float(v)) for v in (1, 10, 100))
    assert losses.mix(one, ten, hundred, a=0.25, b=0.5).item() == pytest.approx(0.25 * 1 + 0.25 * 10 + 0.5 * 100)


def test_log_q_correction_equals_its_formula() -> None:
    offsets = losses.log_q_correction(torch.tensor([1.0, 3.0, 4.0]))
    assert offsets.tolist() == pytest.approx([-math.log(1 / 8), -math.log(3 / 8), -math.log(4 / 8)])


def test_the_correction_is_added_to_the_logits() -> None:
    offsets, allowed = torch.tensor([0.5, -1.0, 2.0]), torch.ones(1, 3, dtype=torch.bool)
    loss = losses.info_nce(torch.zeros(1, 4), torch.zeros(3, 4), torch.tensor([1]), allowed, 0.07, offsets)
    expected = -1.0 - math.log(math.exp(0.5) + math.exp(-1.0) + math.exp(2.0))
    assert loss.item() == pytest.approx(-expected)
