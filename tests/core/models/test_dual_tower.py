"""The dual tower: one pass over all prefixes equals one window at a time, and later items have no influence.

Tests with the fixture `tower` run on every family of backbones.
"""

import dataclasses
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from pixrec_core import losses
from pixrec_core.errors import CheckpointError
from pixrec_core.models.dual_tower import DualTower, allowed_negatives, span_means
from pixrec_core.models.items_layers import ItemIdEmbedding
from pixrec_core.models.negatives import Negatives
from pixrec_core.models.windows import TrainingWindow
from tests.core.models.native_forward import native_forward, prompt
from tests.core.models.small import Small, small, user_vectors, vectors

WINDOWS = [TrainingWindow([1, 2, 3, 0]), TrainingWindow([5, 6, 1, 7, 9, 9]), TrainingWindow([3, 8])]
TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}


def one_window(tower: Small, history: list[int], target: int) -> dict[str, torch.Tensor]:
    """v_U, v_T|U and the generation logits of one pair, through the backbone's own `forward`."""
    model = tower.model
    ids, spans = prompt(tower, [*history, target])
    outputs = native_forward(tower, [[*history, target]])
    hidden = outputs.hidden_states[-1][0]
    (start, end, text_length), history_end = spans[-1], spans[-2][1]
    return {
        "user": functional.normalize(model.user_head(hidden[:history_end].mean(0)), dim=-1),
        "target": functional.normalize(model.item_head(hidden[start:end].mean(0)), dim=-1),
        "logits": outputs.logits[0, start - 1 : start - 1 + text_length],
        "labels": torch.tensor(ids[start : start + text_length], dtype=torch.long),
    }


@torch.no_grad()
def test_all_prefixes_in_one_pass_equal_one_window_at_a_time(tower: Small) -> None:
    model = tower.model
    outputs = model(**tower.collator(WINDOWS))

    pairs = [(w[:n], w[n], w[n:]) for w, *_ in WINDOWS for n in range(1, len(w))]
    alone = [one_window(tower, history, target) for history, target, _ in pairs]
    distinct = sorted({item for window in WINDOWS for item in window.items})
    keys = torch.cat([vectors(model, tower.collator, [item]) for item in distinct])
    targets = torch.tensor([distinct.index(target) for _, target, _ in pairs])
    later = torch.tensor([[item not in rest for item in distinct] for _, _, rest in pairs])

    def contrast(name: str) -> torch.Tensor:
        return losses.info_nce(torch.stack([a[name] for a in alone]), keys, targets, later, model.config.tau)

    generation = functional.cross_entropy(
        torch.cat([a["logits"] for a in alone]), torch.cat([a["labels"] for a in alone])
    )
    torch.testing.assert_close(outputs.user_item, contrast("user"), **TOLERANCE)
    torch.testing.assert_close(outputs.item_item, contrast("target"), **TOLERANCE)
    torch.testing.assert_close(outputs.generation, generation, **TOLERANCE)
    expected = losses.mix(generation, contrast("target"), contrast("user"), 0.125, 0.8)
    torch.testing.assert_close(outputs.loss, expected, **TOLERANCE)


@torch.no_grad()
def test_user_vectors_equal_those_of_training(tower: Small) -> None:
    history = WINDOWS[1].items[:-1]
    users = user_vectors(tower.model, tower.collator, [history, [2]])
    torch.testing.assert_close(users[0], one_window(tower, history, 9)["user"], **TOLERANCE)


@torch.no_grad()
def test_other_items_of_a_batch_change_no_vector(tower: Small) -> None:
    together = vectors(tower.model, tower.collator, list(range(20)))
    alone = torch.cat([vectors(tower.model, tower.collator, [n]) for n in range(20)])
    torch.testing.assert_close(together, alone, **TOLERANCE)


@torch.no_grad()
def test_a_later_item_changes_no_earlier_hidden_state(tower: Small) -> None:
    def hidden(window: list[int]) -> tuple[torch.Tensor, int]:
        batch = tower.collator.history_batch([window])
        features = tower.model.photo_features(batch["photos"])
        return tower.model.hidden_states(batch["input_ids"], batch["image_feature_index"], features)[0], batch[
            "item_spans"
        ][0][1, 1]

    (first, end), (second, _) = hidden([1, 2, 3]), hidden([1, 2, 7])
    torch.testing.assert_close(first[:end], second[:end], **TOLERANCE)
    assert not torch.allclose(first.mean(0), second.mean(0), atol=1e-4)


@torch.no_grad()
def test_photos_change_vectors_of_multimodal_and_not_of_text_only() -> None:
    for variant, differs in (("multimodal", True), ("text_only", False)):
        tower = small(variant)
        before = vectors(tower.model, tower.collator, [1])
        tower.pixels.values[...] = 0.5
        after = vectors(tower.model, tower.collator, [1])
        assert torch.allclose(before, after) is not differs


def test_labels_are_the_text_tokens_of_targets(tower: Small) -> None:
    batch = tower.collator(WINDOWS)
    rows, positions = batch["label_rows"], batch["label_positions"]
    labels = batch["history_input_ids"][rows, positions].tolist()
    expected = [
        token
        for window in WINDOWS
        for number in window.items[1:]
        for token in tower.inputs[number].ids[: tower.inputs[number].text_length].tolist()
    ]
    assert labels == expected
    assert tower.processor.image_token_id not in labels
    assert (positions > 0).all()


def test_negatives_exclude_exactly_the_later_items_of_the_user(tower: Small) -> None:
    batch = tower.collator([TrainingWindow([5, 6, 1, 6], later=[8, 15]), TrainingWindow([3, 8])])
    numbers = batch["item_numbers"]
    assert numbers.tolist() == [1, 3, 5, 6, 8]
    allowed = allowed_negatives(batch["excluded"], numbers, 4)
    negatives = [numbers[row].tolist() for row in allowed]
    assert negatives == [[3, 5], [3, 5], [1, 3, 5], [1, 3, 5, 6]]
    assert numbers[batch["pair_targets"]].tolist() == [6, 1, 6, 8]


def test_every_weight_has_a_gradient_except_frozen_vision(tower: Small) -> None:
    model = deepcopy(tower.model).train()
    model(**tower.collator(WINDOWS)).loss.backward()
    without_gradient = [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert not without_gradient

    frozen = deepcopy(tower.model).train()
    vision = frozen.vision_parameters()
    for parameter in vision:
        parameter.requires_grad_(False)
    frozen(**tower.collator(WINDOWS)).loss.backward()
    assert all(p.grad is None for p in vision)
    assert all(p.grad is not None for p in frozen.backbone.get_decoder().parameters())
    assert {id(p) for p in vision}.isdisjoint(id(p) for p in frozen.backbone.get_decoder().parameters())


def test_span_means_by_hand() -> None:
    hidden = torch.tensor([[[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]]])
    means = span_means(hidden, torch.tensor([0, 1, 1]), torch.tensor([0, 1, 2]), torch.tensor([2, 3, 3]))
    assert means.tolist() == [[1.5], [5.5], [6.0]]


@torch.no_grad()
def test_a_saved_tower_loads_unchanged(tower: Small, tmp_path) -> None:
    tower.model.save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.glob("*.bin")] == []
    loaded = DualTower.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(**tower.collator(WINDOWS)).loss, tower.model(**tower.collator(WINDOWS)).loss)


HEAD = "user_head.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(HEAD), rf"{HEAD} is missing"),
        (lambda weights: weights.update(extra=torch.zeros(1)), r"extra is unexpected"),
        (
            lambda weights: weights.update({HEAD: torch.zeros(3, 5)}),
            rf"{HEAD} has shape \(3, 5\) in place of \(16, 128\)",
        ),
        (
            lambda weights: [weights.pop(name) for name in sorted(weights)[::2]],
            r"is missing; .* and \d+ more\. Restore",
        ),
    ],
    ids=["missing", "unexpected", "shape", "half"],
)
def test_weights_that_do_not_fit_the_configuration_are_an_error(tmp_path: Path, change, message: str) -> None:
    small().model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        DualTower.from_pretrained(tmp_path)


@pytest.mark.parametrize("length", [1, 50])
@torch.no_grad()
def test_histories_of_1_and_50_items(tower: Small, length: int) -> None:
    window = TrainingWindow([n % 20 for n in range(length + 1)])
    assert torch.isfinite(tower.model(**tower.collator([window, TrainingWindow([1, 2])])).loss)


def test_training_memorises_a_few_users() -> None:
    """16 different examples: a model that cannot fit them cannot learn."""
    tower = small()
    model = tower.model.train()
    users = [TrainingWindow([n, (n * 7 + 3) % 20]) for n in range(16)]
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(60):  # 45 are enough
        optimiser.zero_grad()
        model(**tower.collator(users)).loss.backward()
        optimiser.step()
    model.eval()
    with torch.no_grad():
        items = vectors(model, tower.collator, list(range(20)))
        answers = user_vectors(model, tower.collator, [window.items[:1] for window in users])
    assert (answers @ items.T).argmax(1).tolist() == [window.items[1] for window in users]


@torch.no_grad()
def test_with_all_items_sampled_the_loss_is_over_the_training_catalogue(tower: Small) -> None:
    counts = np.ones(20, dtype=np.int64)
    counts[[11, 12]] = 0  # without training interactions, so never negatives
    model, collator = tower.model, dataclasses.replace(tower.collator, negatives=Negatives(counts, 100, seed=0))
    outputs = model(**collator(WINDOWS))

    items = vectors(model, tower.collator, list(range(20)))
    pairs = [(w[:n], w[n], w[n:]) for w, *_ in WINDOWS for n in range(1, len(w))]
    users = torch.cat([user_vectors(model, tower.collator, [history]) for history, _, _ in pairs])
    allowed = torch.tensor([[i not in {11, 12, *later} for i in range(20)] for _, _, later in pairs])
    targets = torch.tensor([target for _, target, _ in pairs])
    expected = losses.info_nce(users, items, targets, allowed, model.config.tau)
    torch.testing.assert_close(outputs.user_item, expected, **TOLERANCE)


def with_item_id_embedding(tower: Small, seed: int | None = None) -> Small:
    """The same tower with an item-id embedding: zeros, or random with a seed."""
    model = deepcopy(tower.model)
    model.item_id_embedding = ItemIdEmbedding(20, 16, dropout=0.5).eval()
    for table in (model.item_id_embedding.history, model.item_id_embedding.candidate):
        torch.nn.init.zeros_(table.weight)
        if seed is not None:
            torch.nn.init.normal_(table.weight, generator=torch.Generator().manual_seed(seed))
    return dataclasses.replace(tower, model=model)


@torch.no_grad()
def test_an_untrained_item_id_embedding_changes_nothing(tower: Small) -> None:
    untrained = with_item_id_embedding(tower)
    for encode, inputs in ((vectors, [3, 7, 0]), (user_vectors, [[1, 2, 3], [4], [5, 5]])):
        expected = encode(tower.model, tower.collator, inputs)
        torch.testing.assert_close(encode(untrained.model, untrained.collator, inputs), expected, **TOLERANCE)


@torch.no_grad()
def test_id_vectors_are_added_to_content_vectors_of_users_and_items(tower: Small) -> None:
    with_ids = with_item_id_embedding(tower, seed=1)
    history, candidate = (
        with_ids.model.item_id_embedding.history.weight,
        with_ids.model.item_id_embedding.candidate.weight,
    )
    histories = [[1, 2, 3], [4, 4]]
    contents = user_vectors(tower.model, tower.collator, histories)
    means = torch.stack([(history[1] + history[2] + history[3]) / 3, history[4]])
    users = user_vectors(with_ids.model, with_ids.collator, histories)
    torch.testing.assert_close(users, functional.normalize(contents + means, dim=-1), **TOLERANCE)
    contents = vectors(tower.model, tower.collator, [6, 2])
    items = vectors(with_ids.model, with_ids.collator, [6, 2])
    torch.testing.assert_close(items, functional.normalize(contents + candidate[[6, 2]], dim=-1), **TOLERANCE)


@torch.no_grad()
def test_the_loss_with_item_ids_equals_that_of_single_histories(tower: Small) -> None:
    with_ids = with_item_id_embedding(tower, seed=1)
    model, collator = with_ids.model, with_ids.collator
    pairs = [(w[:n], w[n], w[n:]) for w, *_ in WINDOWS for n in range(1, len(w))]
    distinct = sorted({item for window in WINDOWS for item in window.items})
    allowed = torch.tensor([[item not in later for item in distinct] for _, _, later in pairs])
    users = torch.cat([user_vectors(model, collator, [history]) for history, _, _ in pairs])
    targets = torch.tensor([distinct.index(target) for _, target, _ in pairs])
    expected = losses.info_nce(users, vectors(model, collator, distinct), targets, allowed, model.config.tau)
    torch.testing.assert_close(model(**collator(WINDOWS)).user_item, expected, **TOLERANCE)


def test_items_without_training_interactions_have_no_id_gradient(tower: Small) -> None:
    with_ids = with_item_id_embedding(tower, seed=1)
    counts = np.ones(20, dtype=np.int64)
    counts[[11, 12]] = 0
    collator = dataclasses.replace(with_ids.collator, negatives=Negatives(counts, 100, seed=0))
    with_ids.model.item_id_embedding.dropout = 0.0
    with_ids.model.train()(**collator(WINDOWS)).loss.backward()
    candidates = with_ids.model.item_id_embedding.candidate.weight.grad.abs().sum(1) > 0
    histories = (
        with_ids.model.item_id_embedding.history.weight.grad.abs().sum(1) > 1e-6
    )  # rounding errors of a cumulative sum
    assert not candidates[[11, 12]].any()
    assert candidates.any()
    assert set(histories.nonzero()[:, 0].tolist()) <= {item for window in WINDOWS for item in window.items[:-1]}


def test_dropout_removes_both_id_vectors_of_an_item() -> None:
    torch.manual_seed(0)
    embedding = ItemIdEmbedding(1000, 4, dropout=0.3).train()
    mask = embedding.dropout_mask()
    assert 0.65 < mask.mean() < 0.75
    numbers = torch.arange(1000)
    for table in (embedding.history, embedding.candidate):
        dropped = embedding.lookup(table, numbers, mask).abs().sum(1) == 0
        assert torch.equal(dropped, mask[:, 0] == 0)
    assert embedding.eval().dropout_mask() is None


@torch.no_grad()
def test_both_heads_start_as_the_same_orthogonal_matrix() -> None:
    torch.manual_seed(0)
    tower = small("text_only")
    heads = tower.model.user_head, tower.model.item_head
    torch.testing.assert_close(heads[0].weight, heads[1].weight, rtol=0, atol=0)
    size = len(heads[0].weight)
    torch.testing.assert_close(heads[0].weight @ heads[0].weight.T, torch.eye(size), rtol=0, atol=1e-5)
