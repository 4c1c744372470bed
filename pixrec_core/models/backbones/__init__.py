"""Vision-language backbones: one module a family of models.

Any `AutoModelForImageTextToText` of transformers works through `Processor` of `_processor`. A
family module is there for what a family does otherwise: it names the `model_type`s it serves in
`MODEL_TYPES` and has a class `FamilyProcessor`. `tiny` is the embedded default, made from nothing.
"""

from pixrec_core.models.backbones._processor import Processor
from pixrec_core.plugins import load_plugin, plugin_names

__all__ = ["Processor", "processor_class"]


def processor_class(model_type: str) -> type[Processor]:
    """The processor of a model family; the general one where the family needs nothing of its own."""
    for name in plugin_names(__name__):
        module = load_plugin(__name__, name)
        if model_type in module.MODEL_TYPES:
            family: type[Processor] = module.FamilyProcessor
            return family
    return Processor
