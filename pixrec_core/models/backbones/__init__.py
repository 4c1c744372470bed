"""Vision-language backbones: one module a family of models.

A family module names the `model_type`s that it serves in `MODEL_TYPES` and has two classes: `FamilyProcessor`, how
texts and photos become tokens and pixels, and `FamilyAdapter`, how the decoder is fed with both. A model of another
family goes through the general `Processor` and `BackboneAdapter`, if `_agreement` finds that its own `forward` reads the same.
`tiny` is the embedded default, made from nothing.
"""

from types import ModuleType
from typing import Any

from pixrec_core.models.backbones._adapter import BackboneAdapter
from pixrec_core.models.backbones._agreement import require_agreement
from pixrec_core.models.backbones._processor import Processor
from pixrec_core.plugins import load_plugin, plugin_names

__all__ = ["BackboneAdapter", "Processor", "adapter_of", "processor_class", "require_agreement"]


def processor_class(model_type: str) -> type[Processor]:
    """The processor of a model family; the general one where there is no family of that type."""
    module = _family(model_type)
    return module.FamilyProcessor if module else Processor


def adapter_of(model: Any) -> BackboneAdapter:
    """What reads prompts through a model; the general adapter where there is no family of its type."""
    module = _family(model.config.model_type)
    adapter: BackboneAdapter = (module.FamilyAdapter if module else BackboneAdapter)(model)
    return adapter


def _family(model_type: str) -> ModuleType | None:
    modules = (load_plugin(__name__, name) for name in plugin_names(__name__))
    return next((module for module in modules if model_type in module.MODEL_TYPES), None)
