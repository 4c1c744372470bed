"""Reference hidden states and logits from the backbone's own `forward`.

Prompts are built token by token; transformers handles pixels, image placeholders, positions and masks.
"""

from typing import Any

import numpy as np
import torch

from pixrec_core import prompts
from tests.core.models.small import Small


def prompt(tower: Small, window: list[int]) -> tuple[list[int], list[tuple[int, int, int]]]:
    """Token ids of a window, and (start, end, number of text tokens) of each of its items."""
    ids, spans = list(tower.processor.start_ids), []
    for n, number in enumerate(window):
        ids += tower.processor.text_ids(prompts.NEXT if n else prompts.FIRST)
        block = tower.inputs[number]
        spans.append((len(ids), len(ids) + len(block.ids), block.text_length))
        ids += block.ids.tolist()
    return ids, spans


def native_forward(tower: Small, windows: list[list[int]], left: bool = False, **inputs: Any) -> Any:
    """Outputs of `forward` for some windows, with padding on the right or on the left."""
    rows = [prompt(tower, window)[0] for window in windows]
    length = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length, dtype=torch.long)
    for n, row in enumerate(rows):
        tokens = slice(length - len(row), length) if left else slice(0, len(row))
        ids[n, tokens], mask[n, tokens] = torch.tensor(row), 1
    inputs = tower.model.adapter.native_forward_kwargs(ids == tower.processor.image_token_id) | inputs
    return tower.model.backbone(
        input_ids=ids, attention_mask=mask, output_hidden_states=True, **photos(tower, windows), **inputs
    )


def native_logits(tower: Small, window: list[int], text: list[int]) -> torch.Tensor:
    """Logits (1 + text, V) after a history and after each token of the text of the next item."""
    lead = prompt(tower, window)[0] + tower.processor.text_ids(prompts.NEXT)
    ids = torch.tensor([[*lead, *text]])
    kwargs = tower.model.adapter.native_forward_kwargs(ids == tower.processor.image_token_id)
    return tower.model.backbone(input_ids=ids, **photos(tower, [window]), **kwargs).logits[0, len(lead) - 1 :]


def photos(tower: Small, windows: list[list[int]]) -> dict[str, torch.Tensor]:
    """Image arguments of `forward`: one image per occurrence of an item with a photo."""
    rows = np.array([tower.inputs.photo_rows[number] for window in windows for number in window])
    if not (rows >= 0).any():
        return {}
    return {name: value for name, value in tower.pixels.load(rows[rows >= 0]).items() if name != "count"}
