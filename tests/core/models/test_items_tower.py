"""`ItemsTower` over frozen features and over a backbone: vectors, loss, gates and negatives."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional
from transformers import set_seed

from pixrec_core import files
from pixrec_core.models import items_tower
from pixrec_core.models.items_collate import FeatureTable, ItemsCollator
from pixrec_core.models.items_layers import FrozenItemsTower, Whitening
from pixrec_core.models.items_tower import ItemsTower, ItemsTowerConfig
from pixrec_core.models.negatives import Negatives
from pixrec_core.models.windows import TrainingWindow
from tests.core.models.small import small

ITEMS, DIM, RAW = 20, 16, {"text": 24, "photo": 10}
IDS = pl.Series([f"{n:02}" for n in range(ITEMS)])
WHITENED = {"text": 16, "photo": 8}
NO_DROPOUT = {"text": 0.0, "photo": 0.0}
WINDOWS = [
    TrainingWindow([1, 2, 3, 0], (), [0, 5, 5, 9]),
    TrainingWindow([5, 6, 1, 7, 9, 9], [11, 3], [1, 1, 2, 3, 3, 4]),
    TrainingWindow([3, 8], (), [7, 7]),
]
COUNTS = np.array([n % 4 for n in range(ITEMS)])  # items 0, 4, 8, ... are unsold
COUNTS[[0, 8]] = 1


def frozen_tower(modalities: tuple[str, ...] = ("text", "photo"), seed: int = 0, **config) -> ItemsTower:
    set_seed(seed)
    dims = {name: WHITENED[name] for name in modalities}
    raw = {name: RAW[name] for name in modalities}
    given = {"embedding_dim": DIM, "max_history_len": 6, "feature_dropout": NO_DROPOUT, "dropout": 0.0} | config
    return ItemsTower(ItemsTowerConfig(modalities=list(modalities), feature_dims=dims, raw_dims=raw, **given)).eval()


def table(modalities: tuple[str, ...] = ("text", "photo")) -> FeatureTable:
    """Whitened features; every fourth item has no photo."""
    draw = torch.Generator().manual_seed(7)
    values = {n: functional.normalize(torch.randn(ITEMS, d, generator=draw), dim=-1) for n, d in WHITENED.items()}
    values["photo"][::4] = 0
    return FeatureTable({name: values[name] for name in modalities})


def collator(modalities: tuple[str, ...] = ("text", "photo"), sampled: int = 100) -> ItemsCollator:
    return ItemsCollator(table(modalities).item_batch, Negatives(COUNTS, sampled, seed=0))


def open_gates(model: ItemsTower) -> ItemsTower:
    with torch.no_grad():
        for gate in [*model.item_head.gates.values(), *model.history_head.gates.values()]:
            gate.fill_(0.5)
    return model


def both_vectors(model: ItemsTower, source: FeatureTable) -> torch.Tensor:
    batch = source.item_batch(np.arange(ITEMS))
    contents = model.contents(batch)
    return torch.stack([each(contents, batch["numbers"]) for each in (model.item_vectors, model.history_vectors)])


@torch.no_grad()
def test_multimodal_starts_equal_to_text_only() -> None:
    both, text = frozen_tower(), frozen_tower(("text",))
    assert torch.equal(both_vectors(both, table()), both_vectors(text, table(("text",))))
    assert both(**collator()(WINDOWS)).loss == text(**collator(("text",))(WINDOWS)).loss
    assert not torch.allclose(both_vectors(open_gates(both), table())[0, 1], both_vectors(text, table(("text",)))[0, 1])


@torch.no_grad()
def test_photos_alone_need_no_gate() -> None:
    vectors = both_vectors(frozen_tower(("photo",)), table(("photo",)))
    assert not vectors[:, ::4].any()  # items without a photo
    torch.testing.assert_close(vectors[:, 1::4].norm(dim=-1), torch.ones(2, ITEMS // 4))


@torch.no_grad()
def test_an_unknown_photo_contributes_nothing() -> None:
    both, text = open_gates(frozen_tower()), frozen_tower(("text",))
    torch.testing.assert_close(both_vectors(both, table())[:, ::4], both_vectors(text, table(("text",)))[:, ::4])


def test_every_weight_has_a_gradient() -> None:
    model = open_gates(frozen_tower(user_pooling="gru", weight_item_item=0.2))
    model.add_item_id_embedding(IDS, 0.0)
    with torch.no_grad():  # the network's last layer starts at zero, so nothing flows to the layers before it
        torch.nn.init.normal_(model.user_encoder.out.weight)
        torch.nn.init.normal_(model.user_encoder.pooled.query)
    model.train()(**collator()(WINDOWS)).loss.backward()
    assert not [name for name, each in model.named_parameters() if each.grad is None or not each.grad.any()]


def test_closed_gates_have_a_gradient() -> None:
    model = frozen_tower()
    model.train()(**collator()(WINDOWS)).loss.backward()
    assert all(gate.grad for gate in [*model.item_head.gates.values(), *model.history_head.gates.values()])


def test_a_user_with_very_many_later_items_excludes_no_more_than_the_batch_has() -> None:
    window = TrainingWindow([0, 1, 2], (np.arange(30_000) % len(COUNTS)).tolist(), times=[1, 2, 3])
    batch = collator()([window])
    assert len(batch["excluded"]) <= len(batch["pairs"]) * (len(window.items) + len(batch["key_numbers"]))


@torch.no_grad()
def test_the_loss_is_over_all_sold_items_but_the_users_later_ones() -> None:
    model, source = open_gates(frozen_tower(weight_item_item=0.25, weight_user_item=0.75)), table()
    candidates, in_history = both_vectors(model, source)
    sold = set(np.flatnonzero(COUNTS).tolist())
    user_item, item_item = [], []
    for window in WINDOWS:
        taken = [*window.items, *window.later]
        for end in range(1, len(window.items)):
            history, target = window.items[:end], window.items[end]
            times = torch.tensor([window.times[:end]])
            user = model.user_vectors(in_history[None, history], times, torch.tensor([end]))[0]
            keys = [target, *sorted(sold - set(taken[end:]))]
            for query, losses in ((user, user_item), (in_history[target], item_item)):
                losses.append(-((candidates[keys] @ query) / 0.1).log_softmax(0)[0])
    output = model(**collator()(WINDOWS))
    torch.testing.assert_close(output.user_item, torch.stack(user_item).mean())
    torch.testing.assert_close(output.item_item, torch.stack(item_item).mean())
    torch.testing.assert_close(output.loss, 0.75 * output.user_item + 0.25 * output.item_item)


@pytest.mark.parametrize("sampled", [0, 3, 100])
def test_unsold_items_are_never_keys(sampled: int) -> None:
    build = collator(sampled=sampled)
    for epoch in range(20):
        build.set_epoch(epoch)
        keys = build(WINDOWS)["key_numbers"].tolist()
        assert len(keys) == len(set(keys))
        assert all(COUNTS[key] for key in keys)
        assert set(keys) >= {number for window in WINDOWS for number in window.items}


@torch.no_grad()
def test_sampled_negatives_stand_for_all_others() -> None:
    batch = collator(sampled=3)(WINDOWS)
    in_batch = batch["history_keys"]
    assert not batch["key_offsets"][:in_batch].any()
    others = (COUNTS > 0).sum() - in_batch
    torch.testing.assert_close(batch["key_offsets"][in_batch:], torch.full((3,), float(np.log(others / 3))))


@pytest.mark.parametrize("rows", [2, 5, 10])
def test_equal_features_say_nothing_and_spread_no_nan(rows: int) -> None:
    """As those of texts that share no word but `Title`."""
    feature = functional.normalize(torch.rand(1, 384), dim=-1)
    for raw in (torch.ones(rows, 1), torch.zeros(rows, 1), feature.repeat(rows, 1)):
        whitening = Whitening(raw.shape[1], min(16, raw.shape[1]))
        whitening.fit(raw)
        whitened = whitening(raw)
        assert torch.isfinite(whitened).all()
        assert torch.equal(whitened, whitened[:1].expand_as(whitened))


def test_id_vectors_are_added_where_the_tower_is() -> None:
    tower = frozen_tower().to("meta")
    tower.add_item_id_embedding(IDS, 0.5)
    assert {weight.device.type for weight in tower.parameters()} == {"meta"}


def test_whitening_by_hand() -> None:
    whitening = Whitening(2, 2)
    whitening.fit(torch.tensor([[3.0, 1.0], [-1.0, 1.0], [1.0, 2.0], [1.0, 0.0]]))  # variances 2 and 1/2, mean (1, 1)
    whitened = whitening(torch.tensor([[1.0 + 2**0.5, 1.0], [1.0, 1.0 + 0.5**0.5], [0.0, 0.0]])).abs()
    torch.testing.assert_close(whitened, torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), atol=1e-6, rtol=0)
    both = whitening(torch.tensor([[2.0, 2.0]])).abs()[0]
    ridge = 0.01 * 2
    assert float(both[1] / both[0]) == pytest.approx(((2 + ridge) / (0.5 + ridge)) ** 0.5, rel=1e-5)


@torch.no_grad()
def test_a_saved_tower_loads_unchanged(tmp_path: Path) -> None:
    model = open_gates(frozen_tower(user_pooling="transformer"))
    model.add_item_id_embedding(IDS, 0.5)
    for each in (model.item_id_embedding.history, model.item_id_embedding.candidate, model.user_encoder.out):
        torch.nn.init.normal_(each.weight)
    model.fit_whitening("photo", torch.randn(30, 10))
    model.eval()  # the new embedding too
    model.save_pretrained(tmp_path)
    loaded = ItemsTower.from_pretrained(tmp_path).eval()
    assert {n: t.tolist() for n, t in loaded.state_dict().items()} == {
        n: t.tolist() for n, t in model.state_dict().items()
    }
    assert loaded(**collator()(WINDOWS)).loss == model(**collator()(WINDOWS)).loss

    serves, numbers = FrozenItemsTower.from_pretrained(tmp_path).eval(), torch.arange(ITEMS)
    contents = table().item_batch(numbers)["contents"]
    histories = torch.randn(2, 3, DIM), torch.tensor([[0, 5, 9], [4, 0, 0]]), torch.tensor([3, 1])
    assert torch.equal(serves.item_vectors(contents, numbers), model.item_vectors(contents, numbers))
    assert torch.equal(serves.history_vectors(contents, numbers), model.history_vectors(contents, numbers))
    assert torch.equal(serves.user_vectors(*histories), model.user_vectors(*histories))
    raw = torch.randn(2, 10)
    assert torch.equal(serves.whiten("photo", raw), model.whiten("photo", raw))


def test_a_tower_that_serves_needs_exactly_its_weights(tmp_path: Path) -> None:
    frozen_tower().save_pretrained(tmp_path)
    config = files.read_json(tmp_path / "config.json")
    files.write_json(tmp_path / "config.json", config | {"num_item_ids": 10**9})  # 1,000 GB, which nothing allocates
    with pytest.raises(RuntimeError, match=r"Missing key.*item_id_embedding\.history\.weight"):
        FrozenItemsTower.from_pretrained(tmp_path)
    files.write_json(tmp_path / "config.json", config | {"max_history_len": 10**12})
    with pytest.raises(RuntimeError, match=r"size mismatch for user_encoder\.positions"):
        FrozenItemsTower.from_pretrained(tmp_path)


@pytest.mark.parametrize("tokens", [2048, 100])
def test_an_item_of_the_backbone_is_encoded_once_per_step(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    monkeypatch.setattr(items_tower, "CPU_TOKENS", tokens)
    part = small()
    config = ItemsTowerConfig(backbone_config=part.model.config.backbone_config, embedding_dim=DIM)
    model = ItemsTower(config, part.model.backbone)
    rows = []
    run = model.hidden_states
    model.hidden_states = lambda ids, *rest: (rows.append(len(ids)), run(ids, *rest))[1]
    build = ItemsCollator(part.collator.item_batch, Negatives(COUNTS, 4, seed=0))
    model.train()(**build(WINDOWS)).loss.backward()
    assert sum(rows) == 4 + len({number for window in WINDOWS for number in window.items})
    assert (len(rows) > 1) is (tokens < 2048)
    decoder = [each for name, each in model.named_parameters() if name.startswith("backbone") and each.grad is not None]
    assert decoder
    assert all(each.grad.any() for each in decoder)
