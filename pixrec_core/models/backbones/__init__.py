"""Vision-language backbones: one module per model family.

A family module lists the `model_type`s that it supports in `MODEL_TYPES`. Its `FamilyProcessor` turns texts into tokens
and photos into pixels, and its `FamilyAdapter` feeds both to the decoder. Models of other families use `Processor` and
`BackboneAdapter`, if these reproduce the `forward` of the model (`require_agreement`).
`tiny` is the default backbone, which is built without a download.
"""

from types import ModuleType
from typing import Any

from pixrec_core.models.backbones._adapter import BackboneAdapter
from pixrec_core.models.backbones._processor import Processor
from pixrec_core.plugins import load_plugin, plugin_names

__all__ = ["BackboneAdapter", "Processor", "adapter_of", "processor_class"]


def processor_class(model_type: str) -> type[Processor]:
    """The processor class of a model family; `Processor` for a `model_type` without a family module."""
    module = _family(model_type)
    return module.FamilyProcessor if module else Processor


def adapter_of(model: Any) -> BackboneAdapter:
    """The adapter of a model's family around the model; `BackboneAdapter` without a family module."""
    module = _family(model.config.model_type)
    adapter: BackboneAdapter = (module.FamilyAdapter if module else BackboneAdapter)(model)
    return adapter


def _family(model_type: str) -> ModuleType | None:
    modules = (load_plugin(__name__, name) for name in plugin_names(__name__))
    return next((module for module in modules if model_type in module.MODEL_TYPES), None)
