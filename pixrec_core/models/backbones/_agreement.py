"""A backbone is taken only if it reads here as it reads by itself, and never ahead.

Families differ in what they give their decoder besides embeddings: positions in the plane, features for deeper
layers, scaled embeddings, attention in both directions, cross-attention. Whatever of that is missed makes a model
that loads, trains and is worse, silently. So one prompt is read both ways before a backbone is used.
"""

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pixrec_core.errors import BackboneError
from pixrec_core.models.backbones._adapter import BackboneAdapter
from pixrec_core.models.backbones._processor import Processor

TOLERANCE = 1e-3  # of the largest number; float32 rounds to 1e-5, any of the above is above 1e-2
SHADES = ("silver", "maroon")  # of two photos: a model that mixes them up is found too


def require_agreement(adapter: BackboneAdapter, processor: Processor) -> None:
    """Read a prompt with two photos through a reader and through the model's own `forward`.

    Raises:
        BackboneError: the model takes no images as embeddings, reads otherwise, or its states depend on what follows.
    """
    kind = f"{adapter.model.config.model_type} ({type(adapter.model).__name__})"
    try:
        own, ours, changed = _states(adapter, processor)
    except Exception as error:  # whatever a model's code may raise when it is used as it was not meant to be
        raise BackboneError(
            f"{kind} takes no image features as embeddings among those of a text before a causal decoder "
            f"({type(error).__name__}: {error}); PixRec needs that. Choose a family of docs/backbones.md"
        ) from error
    if not _equal(ours, own):
        raise BackboneError(
            f"{kind} reads a prompt otherwise by itself than through {type(adapter).__name__}, which misses something "
            "that it gives its decoder besides embeddings. Choose a family of docs/backbones.md, or add this one"
        )
    if not _equal(changed, ours[:, : changed.shape[1]]):
        raise BackboneError(
            f"{kind} is not causal: what follows a token changes its hidden state. Choose a family of docs/backbones.md"
        )


@torch.inference_mode()
def _states(adapter: BackboneAdapter, processor: Processor) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states and logits, joined on the last axis: by `forward`, by the adapter, and after another last token.

    The last is (1, L - 1, H + V), the others (1, L, H + V).
    """
    model = adapter.model
    pixels = torch.cat([processor.pixels(Image.new("RGB", (processor.edge,) * 2, shade)) for shade in SHADES])
    inputs = {name: value.to(model.device) for name, value in processor.image_inputs(pixels, len(SHADES)).items()}
    features = adapter.features(inputs, len(SHADES))
    ids, image_feature_index = (rows.to(model.device) for rows in _prompt(processor, features.shape[1]))
    own = model(
        input_ids=ids,
        **inputs,
        **adapter.native_forward_kwargs(image_feature_index >= 0),
        use_cache=False,
        output_hidden_states=True,
    )

    def read(ids: Tensor) -> Tensor:
        hidden = adapter.hidden_states(ids, image_feature_index, features)
        return torch.cat([hidden, adapter.logits(hidden)], dim=-1)

    other = ids.clone()
    other[:, -1] = ids[:, 0]
    return torch.cat([own.hidden_states[-1], own.logits], dim=-1), read(ids), read(other)[:, :-1]


def _prompt(processor: Processor, image_tokens: int) -> tuple[Tensor, Tensor]:
    """Token ids and image_feature_index of a text with two photos in it, (1, L) each."""
    before, after = processor.around_image()
    ids, image_feature_index = list(processor.start_ids), [-1] * len(processor.start_ids)
    for photo, words in enumerate(("A lamp ", " and a chair ")):
        text = [*processor.text_ids(words), *before]
        ids += [*text, *[processor.image_token_id] * image_tokens, *after]
        first = photo * image_tokens
        image_feature_index += [*[-1] * len(text), *range(first, first + image_tokens), *[-1] * len(after)]
    end = processor.text_ids(" for the hall.")
    return torch.tensor([[*ids, *end]]), torch.tensor([[*image_feature_index, *[-1] * len(end)]])


def _equal(one: Any, other: Any) -> bool:
    return bool((one - other).abs().max() <= TOLERANCE * other.abs().max())
