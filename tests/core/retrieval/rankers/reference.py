"""Reference rankings: each item's full text after each history, through the `forward` of the model itself."""

from dataclasses import replace
from functools import cache

import numpy as np
import torch

from pixrec_core import prompts
from pixrec_core.retrieval.rankers import Catalogue, UserBatch
from tests.core.models.native_forward import native_logits
from tests.core.models.small import Small, catalogue

#: One item without a photo or a text; two items; several with a long one among them, so that windows slide.
HISTORIES = [[0], [3, 5], [1, 2, 4, 1, 8]]
LONG = [(7 * n) % 20 for n in range(50)]
TWINS = {6: 5, 9: 5, 12: 11}  # items with the text of another one


def with_twins(tower: Small) -> Small:
    """The same tower, over a catalogue in which some texts are equal."""
    texts = [block.ids[: block.text_length] for block in tower.inputs]
    for twin, other in TWINS.items():
        texts[twin] = texts[other]
    tokens, ends = np.concatenate(texts).astype(np.int32), np.cumsum([len(text) for text in texts])
    return replace(tower, inputs=replace(tower.inputs, tokens=tokens, ends=ends))


def example_catalogue(tower: Small) -> Catalogue:
    """The tower's items with random vectors."""
    items = [f"i{n:02}" for n in range(len(tower.inputs))]
    vectors = np.random.default_rng(0).normal(size=(len(items), 8)).astype(np.float32)
    texts = [prompts.item_text(item) for item in catalogue(len(items))]
    return Catalogue(items, tower.model, tower.collator, vectors, texts)


def users_of(items: Catalogue, histories=HISTORIES) -> UserBatch:
    """Users with random vectors and an exact dense order."""
    vectors = np.random.default_rng(1).normal(size=(len(histories), items.vectors.shape[1])).astype(np.float32)
    cosines = vectors @ items.vectors.T
    nearest = np.argsort(-cosines, axis=1, kind="stable")
    return UserBatch(histories, vectors, nearest, np.take_along_axis(cosines, nearest, axis=1))


@cache
@torch.no_grad()
def judged(tower: Small) -> tuple[Small, list[np.ndarray]]:
    """The tower over the catalogue with twins, and `likelihoods` after each of `HISTORIES`."""
    twins = with_twins(tower)
    return twins, [likelihoods(twins, history) for history in HISTORIES]


@torch.no_grad()
def likelihoods(tower: Small, history: list[int]) -> np.ndarray:
    """Mean log-probability of each item's text after a history, (N,); NaN for an item without one."""
    found = []
    for block in tower.inputs:
        text = block.ids[: block.text_length].tolist()
        log = native_logits(tower, history, text)[: len(text)].log_softmax(-1)
        found.append(log[range(len(text)), text].mean().item() if text else np.nan)
    return np.array(found)
