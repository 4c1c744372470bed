"""The towers: all prefixes in one pass equal one window at a time, and nothing leaks between places.

Tests with `tower` run on every family of backbones.
"""

from copy import deepcopy

import pytest
import torch
from torch.nn import functional

from pixrec_core import losses
from pixrec_core.models.dual_tower import DualTower, span_means
from tests.core.models.own_forward import own_forward, prompt
from tests.core.models.small import Small, small, vectors

WINDOWS = [[1, 2, 3, 0], [5, 6, 1, 7, 9, 9], [3, 8]]
TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}


def one_window(tower: Small, history: list[int], target: int) -> dict[str, torch.Tensor]:
    """v_U, v_T|U and the generation logits of one pair, through the backbone's own `forward`."""
    model = tower.model
    ids, spans = prompt(tower, [*history, target])
    outputs = own_forward(tower, [[*history, target]])
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

    pairs = [(w[:n], w[n], w[n:]) for w in WINDOWS for n in range(1, len(w))]
    alone = [one_window(tower, history, target) for history, target, _ in pairs]
    distinct = sorted({item for window in WINDOWS for item in window})
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
    expected = losses.mix(generation, contrast("target"), contrast("user"), 0.125, 0.3)
    torch.testing.assert_close(outputs.loss, expected, **TOLERANCE)


@torch.no_grad()
def test_user_vectors_of_retrieval_are_those_of_training(tower: Small) -> None:
    history = WINDOWS[1][:-1]
    batch = tower.collator.histories([history, [2]])
    ends = torch.tensor([spans[-1, 1] for spans in batch["spans"]])
    users = tower.model.user_vectors(batch["ids"], batch["slots"], ends, tower.model.photo_features(batch["photos"]))
    torch.testing.assert_close(users[0], one_window(tower, history, 9)["user"], **TOLERANCE)


@torch.no_grad()
def test_company_in_a_batch_changes_no_vector(tower: Small) -> None:
    together = vectors(tower.model, tower.collator, list(range(20)))
    alone = torch.cat([vectors(tower.model, tower.collator, [n]) for n in range(20)])
    torch.testing.assert_close(together, alone, **TOLERANCE)


@torch.no_grad()
def test_a_later_item_changes_no_earlier_hidden_state(tower: Small) -> None:
    def hidden(window: list[int]) -> tuple[torch.Tensor, int]:
        batch = tower.collator.histories([window])
        features = tower.model.photo_features(batch["photos"])
        return tower.model.hidden_states(batch["ids"], batch["slots"], features)[0], batch["spans"][0][1, 1]

    (first, end), (second, _) = hidden([1, 2, 3]), hidden([1, 2, 7])
    torch.testing.assert_close(first[:end], second[:end], **TOLERANCE)
    assert not torch.allclose(first.mean(0), second.mean(0), atol=1e-4)


@torch.no_grad()
def test_a_photo_counts_only_for_the_variant_that_sees_it() -> None:
    for variant, differs in (("multimodal", True), ("text_only", False)):
        tower = small(variant)
        before = vectors(tower.model, tower.collator, [1])
        tower.pixels.values[...] = 0.5
        after = vectors(tower.model, tower.collator, [1])
        assert torch.allclose(before, after) is not differs


def test_labels_are_the_targets_text_shifted_by_one(tower: Small) -> None:
    batch = tower.collator(WINDOWS)
    rows, positions = batch["label_rows"], batch["label_positions"]
    spelled = batch["history_ids"][rows, positions].tolist()
    expected = [
        token
        for window in WINDOWS
        for number in window[1:]
        for token in tower.inputs.blocks[number].ids[: tower.inputs.blocks[number].text_length].tolist()
    ]
    assert spelled == expected
    assert tower.processor.image_token_id not in spelled
    assert (positions > 0).all()


def test_negatives_leave_out_what_the_user_takes_later_and_nothing_else(tower: Small) -> None:
    batch = tower.collator([[5, 6, 1, 6], [3, 8]])
    distinct = [1, 3, 5, 6, 8]
    answers = {
        pair: [i for i, ok in zip(distinct, row, strict=True) if ok] for pair, row in enumerate(batch["negatives"])
    }
    assert answers == {0: [3, 5, 8], 1: [3, 5, 8], 2: [1, 3, 5, 8], 3: [1, 3, 5, 6]}
    assert [distinct[t] for t in batch["pair_targets"]] == [6, 1, 6, 8]


def test_gradient_reaches_every_part_and_stops_at_frozen_vision(tower: Small) -> None:
    model = deepcopy(tower.model).train()
    model(**tower.collator(WINDOWS)).loss.backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert not still

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
def test_a_saved_tower_comes_back_the_same(tower: Small, tmp_path) -> None:
    tower.model.save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.glob("*.bin")] == []
    loaded = DualTower.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(**tower.collator(WINDOWS)).loss, tower.model(**tower.collator(WINDOWS)).loss)


@pytest.mark.parametrize("length", [1, 50])
@torch.no_grad()
def test_histories_of_one_and_of_fifty(tower: Small, length: int) -> None:
    window = [n % 20 for n in range(length + 1)]
    assert torch.isfinite(tower.model(**tower.collator([window, [1, 2]])).loss)


def test_a_few_users_are_learnt_by_heart() -> None:
    """32 examples, no two alike: a model that cannot fit them cannot learn."""
    tower = small(count=40)
    model = tower.model.train()
    users = [[n, (n * 7 + 3) % 40] for n in range(32)]
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(60):
        optimiser.zero_grad()
        model(**tower.collator(users)).loss.backward()
        optimiser.step()
    model.eval()
    with torch.no_grad():
        items = vectors(model, tower.collator, list(range(40)))
        batch = tower.collator.histories([[u] for u, _ in users])
        ends = torch.tensor([spans[-1, 1] for spans in batch["spans"]])
        answers = model.user_vectors(batch["ids"], batch["slots"], ends, model.photo_features(batch["photos"]))
    assert (answers @ items.T).argmax(1).tolist() == [target for _, target in users]
