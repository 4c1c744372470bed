"""Backbones and their processors: `tiny` is built here, any other is loaded from the hub or a local folder.

Decoders of some families need more than embeddings: two-dimensional positions, features for deeper layers, scaled
embeddings, bidirectional attention, cross-attention. Without them a model loads and trains, but is worse, and no error
shows it. So one prompt is computed both by the model's `forward` and by our adapter before a backbone is used.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from PIL import Image
from torch import Tensor

from pixrec_core import hub, schemas
from pixrec_core.errors import BackboneError
from pixrec_core.models.backbones import BackboneAdapter, Processor, adapter_of, processor_class, tiny
from pixrec_core.models.collate import Collator
from pixrec_core.models.item_inputs import item_inputs
from pixrec_core.pretrained import CONFIG, SAFE, check_config, check_folder, load_pretrained

TOLERANCE = 1e-3  # relative to the largest value; float32 rounds to 1e-5, a missing part is above 1e-2
PHOTOS = {"A lamp": "silver", "A chair": "maroon"}  # two colours, so that swapped photos are found too


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

    folder = hub.download_backbone(name, revision)
    try:
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


def require_agreement(adapter: BackboneAdapter, processor: Processor) -> None:
    """Compare the adapter with the `forward` of the model on a prompt with two photos.

    Raises:
        BackboneError: the model does not take images as embeddings, the results differ, or the model is not causal.
    """
    kind = f"{adapter.model.config.model_type} ({type(adapter.model).__name__})"
    advice = "Choose a family of docs/how-it-works.md"
    try:
        native, adapted, changed = _states(adapter, processor)
    except Exception as error:  # model code may raise anything
        raise BackboneError(
            f"{kind} cannot be used: PixRec needs a causal decoder that takes image features as embeddings between "
            f"those of text ({type(error).__name__}: {error}). {advice}"
        ) from error
    if not _close(adapted, native):
        raise BackboneError(
            f"{kind} cannot be used: {type(adapter).__name__} does not reproduce its `forward`, so the decoder needs "
            f"an input that the adapter does not give. {advice}, or add an adapter as described there"
        )
    if not _close(changed, adapted[:, : changed.shape[1]]):
        raise BackboneError(
            f"{kind} cannot be used: it is not causal, since a later token changes earlier hidden states. {advice}"
        )


@torch.inference_mode()
def _states(adapter: BackboneAdapter, processor: Processor) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states and logits (1, L, H + V), by `forward`, by the adapter, and with another last token.

    The third is (1, L - 1, H + V), without the last token.
    """
    model, count = adapter.model, len(PHOTOS)
    photos = [Image.new("RGB", (processor.edge, processor.edge), colour) for colour in PHOTOS.values()]
    pixels = torch.cat([processor.pixels(photo) for photo in photos])
    inputs = send_to_device(processor.image_inputs(pixels, count), model.device)
    features = adapter.features(inputs)
    catalogue = [dict.fromkeys(schemas.ITEM_SCHEMA) | {schemas.TITLE: title} for title in PHOTOS]
    items = item_inputs(catalogue, np.arange(count), processor, features.shape[1], "multimodal", 32)
    batch = send_to_device(Collator(items, processor, lambda _: {}).history_batch([range(count)]), model.device)
    ids, index = batch["input_ids"], batch["image_feature_index"]
    del inputs["count"]
    kwargs = inputs | adapter.native_forward_kwargs(index >= 0)
    native = model(input_ids=ids, **kwargs, use_cache=False, output_hidden_states=True)

    def adapted(ids: Tensor) -> Tensor:
        hidden = adapter.hidden_states(ids, index, features)
        return torch.cat([hidden, adapter.logits(hidden)], dim=-1)

    changed = torch.cat([ids[:, :-1], ids[:, :1]], dim=1)
    return torch.cat([native.hidden_states[-1], native.logits], dim=-1), adapted(ids), adapted(changed)[:, :-1]


def _close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= TOLERANCE * other.abs().max())
