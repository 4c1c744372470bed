"""Sequence networks and their training."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from pixrec_core.recommenders import _sequence_training as training
from pixrec_core.recommenders import gru4rec, sasrec
from pixrec_core.recommenders._sequence_training import NextItemNetwork, Windows, embedding_rows, sampled_loss
from pixrec_core.recommenders.base import ItemLists
from tests.core.recommenders.train_data import make_train_data

ENCODERS = [gru4rec.GruEncoder, sasrec.SelfAttention]


def stretches(windows):
    return [windows.values[s:e].tolist() for s, e in zip(windows.starts, windows.ends, strict=True)]


def to_train(lists, times=None):
    """Windows of lists whose items all have different times, unless `times` says otherwise."""
    rows = ItemLists.from_lists(lists)
    return Windows.to_train(rows, ItemLists.from_lists(times).values if times else np.arange(len(rows.values)))


def test_items_of_one_instant_get_a_new_order_each_epoch():
    windows = to_train([[1, 2, 3, 4], [5, 6]], times=[[1, 2, 2, 2], [2, 3]])
    random = np.random.default_rng(0)
    epochs = [sorted(row for batch in windows.shuffled(random) for row in batch.tolist()) for _ in range(50)]
    assert {tuple(first) for first, _ in epochs} == {
        (1, 2, 3, 4), (1, 2, 4, 3), (1, 3, 2, 4), (1, 3, 4, 2), (1, 4, 2, 3), (1, 4, 3, 2),
    }  # fmt: skip
    assert {tuple(second) for _, second in epochs} == {(5, 6, 0, 0)}


def test_unknown_items_have_no_embedding_row():
    rows = embedding_rows(ItemLists.from_lists([[0, 1, 5, 4], [2], [4]]), np.array([1, 4]))
    assert [rows.values.tolist(), rows.offsets.tolist()] == [[1, 2, 2], [0, 2, 2, 3]]


def test_every_item_but_the_first_is_a_target_once(monkeypatch):
    monkeypatch.setattr(training, "WINDOW", 2)
    windows = to_train([[1, 2, 3, 4, 5, 6], [7], [8, 9], []])
    assert stretches(windows) == [[4, 5, 6], [2, 3, 4], [1, 2], [8, 9]]


def test_the_newest_items_are_read(monkeypatch):
    monkeypatch.setattr(training, "WINDOW", 2)
    assert stretches(Windows.newest(ItemLists.from_lists([[1, 2, 3], [], [4]]))) == [[2, 3], [], [4]]


@pytest.mark.parametrize("pool", [8, 1000])
def test_batches_hold_every_window_once_and_similar_numbers_of_targets(pool, monkeypatch):
    monkeypatch.setattr(training, "POOL", pool)
    monkeypatch.setattr(training, "TARGETS", (8, 8))
    lists = [[user + 1] * (2 + 3 * (user % 2)) for user in range(24)]
    batches = list(to_train(lists).shuffled(np.random.default_rng(0)))
    assert sorted([i for i in row if i] for batch in batches for row in batch.tolist()) == lists
    targets = [int((batch[:, 1:] > 0).sum()) for batch in batches]
    assert max(targets) < 8 + 4
    if pool > len(lists):
        assert sorted(targets) == [4, 8, 8, 8, 8, 8, 8, 8]


@pytest.mark.parametrize(("windows", "targets"), [(1, 4), (80, 5), (800, 8)])
def test_targets_per_step_grow_with_the_data_within_bounds(windows, targets, monkeypatch):
    monkeypatch.setattr(training, "TARGETS", (4, 8))
    monkeypatch.setattr(training, "STEPS_WANTED", 16)
    assert to_train([[1, 2]] * windows).targets_per_step == targets


@pytest.mark.parametrize("make_encoder", ENCODERS)
def test_outputs_depend_on_no_later_item_and_not_on_padding(make_encoder):
    model = NextItemNetwork(9, make_encoder(0.5)).eval()
    whole = model(torch.tensor([[1, 2, 3, 4]]))
    assert torch.allclose(model(torch.tensor([[1, 2, 3, 9]]))[:, :3], whole[:, :3], atol=1e-6)
    assert torch.allclose(model(torch.tensor([[1, 2, 0, 0]]))[:, :2], whole[:, :2], atol=1e-6)
    assert not torch.allclose(model(torch.tensor([[9, 2, 3, 4]]))[:, 1:], whole[:, 1:], atol=1e-3)


def test_the_loss_of_an_untrained_network_is_that_of_a_uniform_guess():
    model = NextItemNetwork(50, torch.nn.Identity())
    torch.nn.init.zeros_(model.items.weight)
    assert model.loss(torch.tensor([[1, 2, 3], [4, 5, 0]])).item() == pytest.approx(math.log(50))


def test_padding_is_no_target():
    model = NextItemNetwork(5, torch.nn.Identity())
    assert model.loss(torch.tensor([[1, 2, 0, 0]])).item() == pytest.approx(model.loss(torch.tensor([[1, 2]])).item())


def test_sampled_loss_over_all_items_equals_the_full_loss():
    torch.manual_seed(0)
    outputs, items, targets = torch.randn(7, 4), torch.randn(30, 4), torch.arange(7)
    whole = functional.cross_entropy(outputs @ items.T, targets)
    assert torch.allclose(sampled_loss(outputs, targets, items, torch.arange(30)), whole)


def test_sampled_loss_estimates_the_full_loss():
    torch.manual_seed(0)
    outputs, items, targets = torch.randn(7, 4), torch.randn(1000, 4), torch.arange(7)
    whole = functional.cross_entropy(outputs @ items.T, targets)
    sampled = [sampled_loss(outputs, targets, items, torch.randint(1000, (300,))) for _ in range(50)]
    assert torch.stack(sampled).mean() == pytest.approx(whole.item(), abs=0.05)


@pytest.mark.parametrize("full_softmax", [20_000, 3], ids=["full", "sampled"])
@pytest.mark.parametrize("module", [gru4rec, sasrec])
def test_networks_learn_which_item_follows(module, full_softmax, monkeypatch):
    """Each sequence takes steps of two round a ring of twelve items, all equally popular."""
    monkeypatch.setattr(training, "FULL_SOFTMAX", full_softmax)
    monkeypatch.setattr(training, "DROPOUT", 0.1)
    monkeypatch.setattr(training, "LEARNING_RATE", 0.02)  # few steps suffice for so small a ring
    rounds = [[(start + 2 * step) % 12 for step in range(6)] for start in range(12)] * 10
    train_data = make_train_data(rounds, 12, validation=[([i], (i + 2) % 12) for i in range(12)])
    fitted = module.fit(train_data)
    assert fitted.chosen["validation_ndcg@10"] == 1
    assert fitted.scores(ItemLists.from_lists([[5, 7], [3]])).argmax(axis=1).tolist() == [9, 5]


def test_unknown_items_are_ignored_in_histories_and_rank_last():
    fitted = gru4rec.fit(make_train_data([[0, 1], [1, 0]], 4))
    known, mixed, unknown = fitted.scores(ItemLists.from_lists([[0], [0, 3], [2, 3]]))
    assert (known == mixed).all()
    assert known[2] == known[3] < known[:2].min()
    assert unknown.tolist() == [0, 0, 0, 0]


def test_training_keeps_the_epoch_with_the_best_validation(monkeypatch):
    monkeypatch.setattr(training, "PATIENCE", 2)
    model = NextItemNetwork(3, torch.nn.Identity())
    ndcgs = [0.1, 0.3, 0.2, 0.25, 0.9]
    states = []

    def validate():
        states.append(model.items.weight.detach().clone())
        return ndcgs[len(states) - 1]

    best = training._train_to_best(model, to_train([[1, 2, 3]]), validate)
    assert len(states) == 4, "training stops after two epochs without a better one"
    assert best == (2, 0.3)
    assert torch.equal(model.items.weight, states[1])


def test_fitting_does_not_change_the_global_random_state():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    gru4rec.fit(make_train_data([[0, 1]], 2))
    assert torch.rand(1) == expected


def test_a_refit_trains_for_the_chosen_number_of_epochs(monkeypatch):
    monkeypatch.setattr(training, "EPOCHS", 1)
    lists = np.random.default_rng(0).integers(0, 12, (60, 5)).tolist()
    train_data = make_train_data(lists, 12, validation=[([i], (i + 2) % 12) for i in range(12)])
    measured = gru4rec.fit(train_data)
    assert measured.chosen["epochs"] == 1
    monkeypatch.undo()
    again = gru4rec.fit(replace(train_data, chosen=measured.chosen))
    longer = gru4rec.fit(replace(train_data, chosen={**measured.chosen, "epochs": 2}))
    assert again.chosen == measured.chosen
    for name, values in measured.weights.items():
        np.testing.assert_array_equal(again.weights[name], values)
        assert not np.array_equal(longer.weights[name], values)
