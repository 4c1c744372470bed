"""Backbones and their processors: `tiny` is built here, any other is loaded from the hub or a local folder."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pixrec_core import hub
from pixrec_core.errors import BackboneError
from pixrec_core.models.agreement import require_agreement
from pixrec_core.models.backbones import Processor, adapter_of, processor_class, tiny
from pixrec_core.pretrained import CONFIG, SAFE, check_config, check_folder, load_pretrained


def create_backbone(name: str, revision: str | None, texts: Callable[[], Iterable[str]]) -> tuple[Any, Processor]:
    """A trainable model and its processor.

    Args:
        name: `tiny`, a local folder, or a name on the hub.
        revision: branch, tag or commit of the hub repository.
        texts: returns the item texts of the training split, to train the tokenizer of `tiny` on.

    Raises:
        BackboneError: the backbone was not found, or PixRec cannot use it.
    """
    if name == "tiny":
        return tiny.create(texts())
    from transformers import AutoModelForImageTextToText

    try:
        folder = hub.download_backbone(name, revision)
        check_folder(folder)
        processor = load_processor(folder)
        # float32 for any saved dtype: bfloat16 would round small updates to zero.
        model, _ = load_pretrained(AutoModelForImageTextToText.from_pretrained, folder, dtype="float32", **SAFE)
    except Exception as error:  # transformers raises anything for the files of others
        raise BackboneError(_advice(name, error)) from error
    require_agreement(adapter_of(model), processor)
    return model, processor


def load_processor(folder: Path) -> Processor:
    """Processor from the folder of a backbone or a dual tower.

    Raises:
        CheckpointError: config.json or preprocessor_config.json is damaged or absurd.
        Exception: what transformers raises for files that it cannot use.
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer

    for name in (CONFIG, "preprocessor_config.json"):
        check_config(folder / name)
    config = AutoConfig.from_pretrained(folder, **SAFE)
    config = getattr(config, "backbone_config", config)
    tokenizer = AutoTokenizer.from_pretrained(folder, **SAFE)
    image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil", **SAFE)
    return processor_class(config.model_type)(tokenizer, image_processor, config)


def _advice(name: str, error: Exception) -> str:
    first_line = str(error).strip().split("\n")[0]
    return (
        f"backbone {name!r} could not be loaded ({type(error).__name__}: {first_line}). Set model.backbone to `tiny`, "
        "to the hub name of an image-text-to-text model, or to a local folder of one with config.json, "
        "model.safetensors, tokenizer.json and preprocessor_config.json, as `save_pretrained` writes them. PixRec "
        "does not read pickled weights (convert a pytorch_model.bin with `save_pretrained`), and does not run code "
        "from a model's folder"
    )
