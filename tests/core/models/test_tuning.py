"""Trainable weights under each setting: exactly the parts that it names, and the heads."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from pixrec_core.errors import BackboneError
from pixrec_core.models import tuning
from pixrec_core.models.dual_tower import DualTower
from pixrec_core.models.windows import TrainingWindow
from pixrec_core.settings import LoraSettings, ModelSettings
from tests.core.models.small import Small, small, vectors

WINDOWS = [TrainingWindow([1, 2, 3, 0]), TrainingWindow([5, 6, 1, 7])]
RANK = 2


def settings(tune: str, vision: str = "frozen", **others) -> ModelSettings:
    return ModelSettings(tune=tune, vision=vision, last_layers=1, lora=LoraSettings(rank=RANK, dropout=0), **others)


def tuned(tower: Small, *choice: str) -> DualTower:
    model = deepcopy(tower.model).train()
    tuning.select_trainable_weights(model, settings(*choice))
    return model


def step(model: DualTower, tower: Small) -> set[str]:
    """Names of the weights that one optimiser step changes."""
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model(**tower.collator(WINDOWS)).loss.backward()
    optimiser.step()
    optimiser.zero_grad()
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


def parts(model: DualTower) -> dict[str, set[str]]:
    """Names of all weights by part of the model."""
    decoder = next(name for name, module in model.named_modules() if module is model.backbone.get_decoder()) + "."
    last = f"{decoder}layers.{len(model.backbone.get_decoder().layers) - 1}."
    names = {name for name, _ in model.named_parameters()}
    heads = {name for name in names if name.startswith(("user_head", "item_head"))}
    adapters = {name for name in names if ".lora_" in name}
    language = {name for name in names if name.startswith((decoder, "backbone.lm_head"))}
    return {
        "heads": heads,
        "full": language - adapters,
        "lora": adapters,
        "last_layers": {name for name in language if name.startswith(last)},
        "vision": names - language - heads,
    }


@pytest.mark.parametrize("tune", ["full", "lora", "last_layers"])
@pytest.mark.parametrize("vision", ["trainable", "frozen"])
def test_exactly_the_selected_weights_are_trained(tower: Small, tune: str, vision: str) -> None:
    model = tuned(tower, tune, vision)
    by_part = parts(model)
    assert all(by_part[part] for part in ("heads", tune, "vision"))
    expected = by_part["heads"] | by_part[tune] | (by_part["vision"] if vision == "trainable" else set())
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == expected
    changed = step(model, tower) | step(model, tower)  # LoRA's B starts at zero, so A has no gradient in the first step
    # A bias of keys adds the same to all scores of a query, which softmax ignores: its gradient is a rounding error.
    assert changed | {name for name in expected if name.endswith("k_proj.bias")} == expected


def test_adapters_start_without_effect_and_are_in_every_linear_layer(tower: Small) -> None:
    model = tuned(tower, "lora").eval()
    torch.testing.assert_close(*(vectors(each, tower.collator, [1, 2]) for each in (model, tower.model)))
    linear = sum(isinstance(module, nn.Linear) for module in tower.model.backbone.get_decoder().modules())
    assert len(parts(model)["lora"]) == 2 * linear


@torch.no_grad()
def test_a_model_with_merged_adapters_is_plain_and_has_the_same_vectors(tower: Small, tmp_path) -> None:
    model = tuned(tower, "lora")
    with torch.enable_grad():
        step(model, tower)
        step(model, tower)
    model.eval()
    adapted = vectors(model, tower.collator, [0, 1, 2])
    assert not torch.allclose(adapted, vectors(tower.model, tower.collator, [0, 1, 2]), atol=1e-3)
    tuning.merge_lora_adapters(model)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in tower.model.named_parameters()]
    torch.testing.assert_close(vectors(model, tower.collator, [0, 1, 2]), adapted, rtol=1e-3, atol=1e-4)
    for (name, after), before in zip(model.named_parameters(), tower.model.parameters(), strict=True):
        if name.startswith("backbone") and not torch.equal(after, before):
            assert torch.linalg.matrix_rank((after - before).double(), rtol=1e-3) <= RANK, name
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    loaded = DualTower.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(*(vectors(each, tower.collator, [0, 1, 2]) for each in (loaded, model)))


def test_lora_targets_limit_adapters_to_named_layers() -> None:
    model = small().model
    tuning.select_trainable_weights(model, ModelSettings(tune="lora", lora=LoraSettings(targets=("q_proj", "v_proj"))))
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name in parts(model)["lora"]}
    assert adapted == {"q_proj", "v_proj"}


@torch.no_grad()
def test_adapters_of_an_embedding_that_is_not_tied_merge_without_changing_logits() -> None:
    model = small().model
    head = model.backbone.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.clone())
    targets = ("q_proj", "embed_tokens")
    tuning.select_trainable_weights(model, ModelSettings(tune="lora", lora=LoraSettings(targets=targets)))
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    tokens = torch.arange(8)[None]
    before = model.backbone.eval()(input_ids=tokens).logits
    tuning.merge_lora_adapters(model)
    torch.testing.assert_close(model.backbone(input_ids=tokens).logits, before, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tune": "lora", "lora": LoraSettings(targets=("query",))}, r"model\.lora\.targets \('query',\).*q_proj"),
        (
            {"tune": "lora", "lora": LoraSettings(targets=("q_proj", "v_porj"))},
            r"no layer .* is named v_porj; .*v_proj",
        ),
        ({"tune": "lora", "lora": LoraSettings(targets=("q_proj", "lm_head"))}, r"no layer .* is named lm_head;"),
        ({"tune": "lora", "lora": LoraSettings(targets=("embed_tokens",))}, r"names embed_tokens, but the output head"),
        ({"tune": "last_layers", "last_layers": 3}, r"model\.last_layers is 3, but LlamaModel has 2 layers"),
    ],
)
def test_settings_that_do_not_fit_the_backbone_are_errors(changes: dict, message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        tuning.select_trainable_weights(small().model, ModelSettings(**changes))
