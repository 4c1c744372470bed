"""The paper's generative retrieval: the language model writes texts of the next item, BM25 finds matching items.

The texts take turns, the likeliest first; each adds its best item that is not in the list yet (CALRec, arXiv
2405.02429, section 3.3). Texts are unconstrained and may describe items that do not exist. They have the length of the
median item text, since the end of a text was never trained.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixrec_core.data.text_search import TextSearch
from pixrec_core.models.item_inputs import Ids
from pixrec_core.ranking_table import top_items
from pixrec_core.retrieval.rankers import Catalogue, RankedItems, Ranker, UserBatch
from pixrec_core.retrieval.rankers._beams import Beams
from pixrec_core.settings import GenerativeSettings


def create_ranker(catalogue: Catalogue, settings: GenerativeSettings) -> Ranker:
    """Build the BM25 index of the catalogue's texts once."""
    search = TextSearch(catalogue.texts)
    tokenizer = catalogue.collator.processor.tokenizer
    lengths = [len(text) for text in catalogue.token_texts()]
    writer = Writer(settings, max(1, round(float(np.median(lengths)))), tokenizer.all_special_ids)

    def rank(users: UserBatch) -> list[RankedItems]:
        written = writer.write(Beams(catalogue.read(users.histories)))
        lists = []
        for ids, vector, nearest in zip(written, users.vectors, users.nearest, strict=True):
            texts = list(dict.fromkeys(tokenizer.batch_decode(ids, skip_special_tokens=True)))
            dense_ranks = np.argsort(np.argsort(-(catalogue.vectors @ vector), kind="stable"))
            items = round_robin(search_texts(search, texts, dense_ranks, len(nearest)))
            lists.append(RankedItems(items, (1 / np.arange(1, len(items) + 1)).astype(np.float32)))
        return lists

    return rank


def search_texts(
    search: TextSearch, texts: Sequence[str], tie_order: NDArray[np.int64], depth: int
) -> list[NDArray[np.int64]]:
    """The `depth` best items of each text by BM25, best first; items without a word in common are left out.

    `tie_order` (N,) is the rank of each item, which orders items of equal BM25.
    """
    scores = search.scores(search.queries(texts))
    best, values = top_items(scores, np.full(len(texts), depth), tie_order)
    return [items[score > 0] for items, score in zip(best, values, strict=True)]


def round_robin(lists: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Merge several lists: in each round every list adds its best item that is not in the result yet."""
    merged: dict[int, None] = {}
    remaining = [iter(items.tolist()) for items in lists]
    while remaining:
        still_remaining = []
        for items in remaining:
            item = next((each for each in items if each not in merged), None)
            if item is not None:
                merged[item] = None
                still_remaining.append(items)
        remaining = still_remaining
    return np.fromiter(merged, np.int64)


class Writer:
    """Writes texts by beam search or by sampling.

    Args:
        settings: number of texts, and whether to sample.
        tokens: length of each text.
        banned: token ids that no text may contain.
    """

    def __init__(self, settings: GenerativeSettings, tokens: int, banned: Sequence[int]) -> None:
        self._width = settings.beams
        self._extend = self._sample if settings.sample else self._best
        self._tokens = tokens
        self._banned = list(banned)

    def write(self, beams: Beams) -> list[Ids]:
        """Token ids of each prompt's texts, (W, tokens) per prompt, the likeliest text first."""
        generator = torch.Generator(beams.next.device).manual_seed(0)
        texts = beams.next.new_zeros(len(beams.scores), 1, 0, dtype=torch.long)
        for step in range(self._tokens):
            beams.next[..., self._banned] = -torch.inf
            parents, tokens, scores = self._extend(beams, generator)
            texts = texts.gather(1, parents[..., None].expand(-1, -1, step))
            texts = torch.cat([texts, tokens[..., None]], dim=2)
            if step + 1 < self._tokens:
                beams.step(parents, tokens, scores)
        order = scores.argsort(dim=1, descending=True, stable=True)
        texts = texts.gather(1, order[..., None].expand_as(texts))
        return list(texts.cpu().numpy())

    def _best(self, beams: Beams, _: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """The likeliest continuations: the texts that they extend, their tokens, their scores."""
        scores = (beams.scores[..., None] + beams.next).flatten(1)
        best, chosen = scores.topk(min(self._width, scores.shape[1]))
        vocabulary = beams.next.shape[2]
        return chosen // vocabulary, chosen % vocabulary, best

    def _sample(self, beams: Beams, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """One sampled continuation per text; the empty text gets all of them in the first step."""
        rows, texts, vocabulary = beams.next.shape
        each = self._width // texts  # all texts in the first step, then one
        probabilities = beams.next.flatten(0, 1).exp()
        tokens = probabilities.multinomial(each, replacement=True, generator=generator).view(rows, -1)
        parents = torch.arange(texts, device=tokens.device).repeat_interleave(each).expand(rows, -1)
        gained = beams.next.flatten(1).gather(1, parents * vocabulary + tokens)
        return parents, tokens, beams.scores.gather(1, parents) + gained
