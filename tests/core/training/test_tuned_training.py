"""Settings of the backbone's training in the whole stage: adapters, last layers, precision, checkpointing."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from transformers import set_seed

from pixrec_core import pipeline
from pixrec_core.models import checkpoint, tuning
from pixrec_core.models.dual_tower import DualTower
from pixrec_core.settings import TrainingSettings
from pixrec_core.stages import Work
from pixrec_core.training import build_tower
from pixrec_core.training.trainer import DualTowerTrainer, _training_arguments
from pixrec_core.training.validation import Validation


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict:
    """The `model` of a training before its adapters are merged, and ids of the parameters that it `optimised`."""
    seen = {}
    create, merge = DualTowerTrainer.create_optimizer, tuning.merge_lora_adapters

    def create_optimizer(trainer, *given):
        optimiser = create(trainer, *given)
        seen["optimised"] = {id(p) for group in optimiser.param_groups for p in group["params"]}
        seen["trainable"] = {id(p) for p in trainer.model.parameters() if p.requires_grad}
        return optimiser

    def merged(model):
        seen["model"] = deepcopy(model)
        merge(model)

    monkeypatch.setattr(DualTowerTrainer, "create_optimizer", create_optimizer)
    monkeypatch.setattr(tuning, "merge_lora_adapters", merged)
    return seen


def untrained(work: Work) -> DualTower:
    set_seed(work.dataset_settings.training.seed)
    return build_tower(
        work.dataset_settings.model.model_copy(update={"tune": "full"}),
        work.dataset_settings.training,
        [work.variant_paths],
    )[0]


@pytest.mark.parametrize(
    "model",
    [
        {"tune": "lora", "lora": {"rank": 3}, "vision": "trainable"},
        {"tune": "last_layers", "last_layers": 1, "vision": "frozen"},
    ],
)
def test_only_trainable_parameters_are_optimised_and_the_checkpoint_loads_as_usual(shop, seen, model) -> None:
    work = shop(model=model, training={"epochs": 1})
    stats = pipeline.CHECKPOINT.materialise(work)["stats"]
    assert seen["optimised"] == seen["trainable"]
    assert stats["trained_parameters"] == sum(p.numel() for p in seen["model"].parameters() if p.requires_grad)
    folder = work.variant_paths.checkpoint
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors", ".md"}
    loaded, before = checkpoint.load(folder)[0], untrained(work)
    assert [n for n, _ in loaded.named_parameters()] == [n for n, _ in before.named_parameters()]
    moved = {
        n for (n, now), then in zip(loaded.named_parameters(), before.parameters(), strict=True) if (now != then).any()
    }
    language = {n for n in moved if "text_model" in n}
    if model["tune"] == "lora":
        rows = {n: now - before.get_parameter(n) for n, now in loaded.named_parameters() if n in language}
        assert {n.rpartition(".")[0] for n in rows} == {
            n for n, m in before.named_modules() if isinstance(m, nn.Linear) and "text_model" in n
        }
        assert max(int(torch.linalg.matrix_rank(change.double(), rtol=1e-3)) for change in rows.values()) == 3
    else:
        assert language
        assert all(".layers.1." in n for n in language)
    assert bool({n for n in moved if "vision_model" in n}) is (model["vision"] == "trainable")
    assert {"user_head.weight", "item_head.weight"} <= moved


def test_adapters_of_the_best_epoch_are_kept(shop, seen, monkeypatch: pytest.MonkeyPatch) -> None:
    adapters = []

    def validate(_, model):
        adapters.append({n: p.detach().clone() for n, p in model.named_parameters() if "lora_" in n})
        return {"recall@10": 0.5, "ndcg@10": 1 / len(adapters)}

    monkeypatch.setattr(Validation, "__call__", validate)
    pipeline.CHECKPOINT.materialise(shop(model={"tune": "lora"}, training={"epochs": 2}))
    first, second = adapters
    assert first
    assert not any(torch.equal(first[n], second[n]) for n in first)
    assert all(torch.equal(seen["model"].get_parameter(n), value) for n, value in first.items())


def test_recomputed_bfloat16_activations_leave_weights_in_float32(shop, seen, monkeypatch) -> None:
    dtypes = set()
    forward = DualTower.hidden_states

    def hidden_states(model, *given):
        if model.training:
            layer = model.backbone.get_decoder().layers[0].mlp.down_proj
            dtypes.add(layer(torch.zeros(1, layer.in_features, device=model.device)).dtype)
        return forward(model, *given)

    monkeypatch.setattr(DualTower, "hidden_states", hidden_states)
    work = shop(training={"epochs": 1, "precision": "bfloat16", "gradient_checkpointing": True})
    pipeline.CHECKPOINT.materialise(work)
    assert dtypes == {torch.bfloat16}
    assert seen["model"].is_activation_checkpointing
    assert {p.dtype for p in checkpoint.load(work.variant_paths.checkpoint)[0].parameters()} == {torch.float32}


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
def test_precision_and_checkpointing_reach_the_trainer(tmp_path, precision: str, checkpointing: bool) -> None:
    settings = TrainingSettings(precision=precision, gradient_checkpointing=checkpointing)
    arguments = _training_arguments(settings, tmp_path, validates=True)
    automatic = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    assert arguments.bf16 is {"auto": automatic, "float32": False, "bfloat16": True}[precision]
    assert arguments.activation_checkpointing is checkpointing
