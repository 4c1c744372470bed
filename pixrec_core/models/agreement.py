"""A check that an adapter reproduces the `forward` of its backbone, and that the backbone is causal.

Decoders of some families need more than embeddings: two-dimensional positions, features for deeper layers, scaled
embeddings, bidirectional attention, cross-attention. Without them a model loads and trains, but is worse, and no error
shows it. So one prompt is computed both ways before a backbone is used.
"""

import numpy as np
import torch
from accelerate.utils import send_to_device
from PIL import Image
from torch import Tensor

from pixrec_core import schemas
from pixrec_core.errors import BackboneError
from pixrec_core.models.backbones import BackboneAdapter, Processor
from pixrec_core.models.collate import Collator
from pixrec_core.models.item_inputs import item_inputs

TOLERANCE = 1e-3  # relative to the largest value; float32 rounds to 1e-5, a missing part is above 1e-2
PHOTOS = {"A lamp": "silver", "A chair": "maroon"}  # two colours, so that swapped photos are found too


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
