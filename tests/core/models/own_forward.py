"""An independent route to hidden states: the backbone's own `forward`.

Prompts are built token by token here; pixels, image placeholders, positions and masks are left to transformers.
"""

from typing import Any

import numpy as np
import torch

from pixrec_core import prompts
from tests.core.models.small import Small


def prompt(tower: Small, window: list[int]) -> tuple[list[int], list[tuple[int, int, int]]]:
    """Token ids of a window, and (start, end, tokens of text) of each of its items."""
    ids, spans = list(tower.processor.start_ids), []
    for n, number in enumerate(window):
        ids += tower.processor.text_ids(prompts.NEXT if n else prompts.FIRST)
        block = tower.inputs.blocks[number]
        spans.append((len(ids), len(ids) + len(block.ids), block.text_length))
        ids += block.ids.tolist()
    return ids, spans


def own_forward(tower: Small, windows: list[list[int]], left: bool = False, **inputs: Any) -> Any:
    """Outputs of `forward` for some windows, padded on the right or on the left."""
    rows = [prompt(tower, window)[0] for window in windows]
    length = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length, dtype=torch.long)
    for n, row in enumerate(rows):
        place = slice(length - len(row), length) if left else slice(0, len(row))
        ids[n, place], mask[n, place] = torch.tensor(row), 1
    inputs = tower.model.adapter.native_forward_kwargs(ids == tower.processor.image_token_id) | inputs
    return tower.model.backbone(
        input_ids=ids, attention_mask=mask, output_hidden_states=True, **photos(tower, windows), **inputs
    )


def own_logits(tower: Small, window: list[int], text: list[int]) -> torch.Tensor:
    """Logits after a history and each token of a text of the next item, by `forward` of the whole, (1 + text, V)."""
    lead = prompt(tower, window)[0] + tower.processor.text_ids(prompts.NEXT)
    ids = torch.tensor([[*lead, *text]])
    own = tower.model.adapter.native_forward_kwargs(ids == tower.processor.image_token_id)
    return tower.model.backbone(input_ids=ids, **photos(tower, [window]), **own).logits[0, len(lead) - 1 :]


def photos(tower: Small, windows: list[list[int]]) -> dict[str, torch.Tensor]:
    """Image arguments of `forward`: each photo as often as it stands in the windows."""
    rows = np.array([tower.inputs.photo_rows[number] for window in windows for number in window])
    if not (rows >= 0).any():
        return {}
    return {name: value for name, value in tower.pixels.load(rows[rows >= 0]).items() if name != "count"}
