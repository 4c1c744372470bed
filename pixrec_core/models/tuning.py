"""Trainable weights: all of them, LoRA adapters, or the last layers; the heads are always trained.

`model.tune` selects weights of the language model with its token embeddings and output head, `model.vision` those of
the vision tower and projection. LoRA (arXiv 2106.09685) comes from peft.
"""

from typing import Any

from torch import nn

from pixrec_core.errors import BackboneError
from pixrec_core.models.dual_tower import Tower
from pixrec_core.settings import LoraSettings, ModelSettings


def select_trainable_weights(model: Tower, settings: ModelSettings) -> None:
    """Set `requires_grad` of the backbone's weights as the settings say; LoRA adapters are added to the model.

    Raises:
        BackboneError: the language model has fewer layers than `last_layers`, or no module of one of `lora.targets`; or
            a target is an embedding that the output head shares, so that merging would change the head.
    """
    decoder = model.backbone.get_decoder()
    model.backbone.requires_grad_(settings.tune == "full")
    for parameter in model.vision_parameters():
        parameter.requires_grad_(settings.vision == "trainable")
    if settings.tune == "lora":
        _check_lora_targets(model.backbone, settings.lora)
        _add_lora_adapters(decoder, settings.lora)
    elif settings.tune == "last_layers":
        layers, count = decoder.layers, settings.last_layers
        if count > len(layers):
            raise BackboneError(
                f"model.last_layers is {count}, but {type(decoder).__name__} has {len(layers)} layers; "
                "lower it, or set model.tune to `full`"
            )
        layers[len(layers) - count :].requires_grad_(True)


def merge_lora_adapters(model: Tower) -> None:
    """Merge LoRA adapters into the weights that they adapt, so that the checkpoint is a plain model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, module.get_base_layer())


def _check_lora_targets(backbone: Any, settings: LoraSettings) -> None:
    """Reject a target that matches nothing, which peft accepts if another one matches, and a tied embedding."""
    modules = dict(backbone.get_decoder().named_modules())
    matches = {
        target: [name for name in modules if name == target or name.endswith(f".{target}")]
        for target in settings.targets
    }
    if unmatched := [target for target, names in matches.items() if not names]:
        layers = sorted({name.rpartition(".")[2] for name, module in modules.items() if isinstance(module, nn.Linear)})
        raise BackboneError(
            f"model.lora.targets {settings.targets}: no layer of {type(backbone.get_decoder()).__name__} is named "
            f"{', '.join(unmatched)}; its linear layers are {', '.join(layers)}"
        )
    embedding, head = backbone.get_input_embeddings(), backbone.get_output_embeddings()
    tied = [target for target, names in matches.items() if any(modules[name] is embedding for name in names)]
    if tied and head is not None and embedding.weight is head.weight:
        raise BackboneError(
            f"model.lora.targets names {tied[0]}, but the output head shares its weights, and an adapter of one of "
            "them cannot be merged; remove it from the targets"
        )


def _add_lora_adapters(decoder: Any, settings: LoraSettings) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets) if settings.targets else "all-linear",
    )
    try:
        inject_adapter_in_model(config, decoder)
    except ValueError as error:
        raise BackboneError(
            f"model.lora.targets {settings.targets} cannot be adapted in {type(decoder).__name__} ({error}); "
            "name its linear layers, such as q_proj and v_proj, or leave the setting out to adapt all of them"
        ) from error
