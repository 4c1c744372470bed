"""Codes of items, and beam search over them."""

import numpy as np
import pytest
import torch

from pixrec_core.recommenders import _sequence_training as training
from pixrec_core.recommenders import semantic_ids
from pixrec_core.recommenders.base import ItemLists
from pixrec_core.recommenders.sasrec import SelfAttention
from pixrec_core.recommenders.semantic_ids import CodeNetwork
from tests.core.recommenders.train_data import make_train_data

N_ITEMS, SIZE = 40, 5


@pytest.fixture(scope="module")
def network():
    """An untrained network over 40 of the 125 codes of three tokens, with clear preferences."""
    torch.manual_seed(0)
    codes = torch.cartesian_prod(*[torch.arange(SIZE)] * 3)[torch.randperm(SIZE**3)[:N_ITEMS]]
    network = CodeNetwork(torch.cat([codes[:1], codes]), SIZE, SelfAttention(0.5), 0.5).eval()
    torch.nn.init.normal_(network.tokens)
    return network


def log_probabilities(network, state, codes):
    """(items, C) of each token of the codes after the tokens before it."""
    states, found = state.expand(len(codes), -1), []
    for position, tokens in enumerate(codes.T):
        found.append(network.logits(states, position).log_softmax(-1).gather(1, tokens[:, None])[:, 0])
        states = network.write(states, position, tokens)
    return torch.stack(found, dim=1)


def test_equal_features_differ_in_the_last_token_only():
    centres = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    codes = semantic_ids.semantic_ids(np.repeat(centres, [1, 3] * 8, axis=0))
    assert codes.shape == (32, semantic_ids.TOKENS + 1)
    assert len(np.unique(codes, axis=0)) == 32
    assert len(np.unique(codes[:, :-1], axis=0)) == 16
    assert codes[:, -1].tolist() == [0, 0, 1, 2] * 8


def test_similar_features_have_the_same_first_token():
    random = np.random.default_rng(0)
    centres = np.repeat(10 * np.eye(4, 8), 16, axis=0)
    codes = semantic_ids.semantic_ids(np.float32(centres + random.normal(scale=0.1, size=centres.shape)))
    of_centres = [set(codes[start : start + 16, 0]) for start in range(0, 64, 16)]
    assert all(not a & b for n, a in enumerate(of_centres) for b in of_centres[:n])
    assert len(np.unique(codes, axis=0)) == 64


@torch.no_grad()
def test_with_enough_beams_scores_are_the_log_probabilities_of_whole_codes(network, monkeypatch):
    monkeypatch.setattr(semantic_ids, "BEAMS", N_ITEMS)
    states = network(torch.tensor([[1, 2, 3], [4, 5, 6]]))[:, -1]
    for state, found in zip(states, network.item_scores(states), strict=True):
        torch.testing.assert_close(found, log_probabilities(network, state, network.codes[1:]).sum(1))


@torch.no_grad()
def test_one_beam_follows_the_likeliest_token_of_the_catalogue(network, monkeypatch):
    monkeypatch.setattr(semantic_ids, "BEAMS", 1)
    states = network(torch.tensor([[1], [2], [3]]))[:, -1]
    codes = network.codes[1:]
    for state, found in zip(states, network.item_scores(states), strict=True):
        each = log_probabilities(network, state, codes)
        after = torch.ones(N_ITEMS, dtype=torch.bool)
        for position in range(2):
            best = each[:, position].where(after, -torch.inf).argmax()
            after &= codes[:, position] == codes[best, position]
        torch.testing.assert_close(found[after], each.sum(1)[after])
        assert found[~after].unique().tolist() == [pytest.approx(found[after].min().item() - 1)]


@torch.no_grad()
def test_the_search_for_many_histories_is_divided(network, monkeypatch):
    """Each part has one history, as if all items had one text."""
    states = network(torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]]))[:, -1]
    together, sizes = network.item_scores(states), []
    search = CodeNetwork._search
    monkeypatch.setattr(CodeNetwork, "_search", lambda self, part: sizes.append(len(part)) or search(self, part))
    monkeypatch.setattr(semantic_ids, "LOGITS_PER_BLOCK", semantic_ids.BEAMS * SIZE)
    torch.testing.assert_close(network.item_scores(states), together)
    assert sizes == [1, 1, 1]


def test_the_loss_is_that_of_all_tokens(network):
    rows = torch.tensor([[1, 2, 3], [4, 5, 0]])
    with torch.no_grad():
        states = network(rows)
        targets = [(states[0, 0], 2), (states[0, 1], 3), (states[1, 0], 5)]
        expected = [-log_probabilities(network, state, network.codes[[row]]).sum() for state, row in targets]
        torch.testing.assert_close(network.loss(rows), torch.stack(expected).mean())


def test_the_network_learns_which_item_follows(monkeypatch):
    """Each sequence takes steps of two round a ring of twelve items, all equally popular."""
    monkeypatch.setattr(training, "LEARNING_RATE", 0.02)  # few steps suffice for so small a ring
    monkeypatch.setattr(semantic_ids, "DROPOUT", 0.1)
    rounds = [[(start + 2 * step) % 12 for step in range(6)] for start in range(12)] * 10
    vectors = np.random.default_rng(0).normal(size=(12, 8))
    train_data = make_train_data(rounds, 12, validation=[([i], (i + 2) % 12) for i in range(12)], text_vectors=vectors)
    fitted = semantic_ids.fit(train_data)
    assert fitted.chosen["validation_ndcg@10"] == 1
    assert fitted.scores(ItemLists.from_lists([[5, 7], [3]])).argmax(axis=1).tolist() == [9, 5]


def test_a_later_catalogue_keeps_the_codes_of_its_items(monkeypatch):
    monkeypatch.setattr(training, "EPOCHS", 1)
    lists = np.random.default_rng(0).integers(0, 6, (20, 4)).tolist()
    fitted = semantic_ids.fit(make_train_data(lists, 6))
    later = fitted.for_catalogue(np.array([1, 2, -1, 3, 4, 5]), np.arange(7))  # 0 and 6 are new, one has left
    before, now = (m.scores(ItemLists.from_lists([h])) for m, h in ((fitted, [0, 4]), (later, [1, 4])))
    np.testing.assert_allclose(now[0, [1, 2, 3, 4, 5]], before[0, [0, 1, 3, 4, 5]], rtol=1e-5)
    assert now[0, 0] == now[0, 6] < now[0, 1:6].min()
