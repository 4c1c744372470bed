"""The paper's way: the language model writes texts of the next item, and BM25 finds the items that read like them.

The texts take turns, the likeliest first, each naming its best item that is not in the list yet
(CALRec, arXiv 2405.02429, section 3.3). Nothing holds a text to the catalogue, so it may describe an
item that is not there. All have the length of the median item text: the end of one was never trained.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixrec_core.data.text_search import TextSearch
from pixrec_core.models.item_inputs import Ids
from pixrec_core.ranking_table import top_items
from pixrec_core.retrieval.rankers._beams import Beams
from pixrec_core.retrieval.rankers._contract import Catalogue, RankedItems, Ranker, UserBatch
from pixrec_core.settings import GenerativeSettings


def make(catalogue: Catalogue, settings: GenerativeSettings) -> Ranker:
    """Index the catalogue's texts once."""
    search = TextSearch(catalogue.texts)
    tokenizer = catalogue.collator.processor.tokenizer
    lengths = [len(text) for text in catalogue.token_texts()]
    writer = Writer(settings, max(1, round(float(np.median(lengths)))), tokenizer.all_special_ids)

    def rank(users: UserBatch) -> list[RankedItems]:
        written = writer.write(Beams(catalogue.read(users.histories)))
        lists = []
        for ids, vector, nearest in zip(written, users.vectors, users.nearest, strict=True):
            texts = list(dict.fromkeys(tokenizer.batch_decode(ids, skip_special_tokens=True)))
            places = np.argsort(np.argsort(-(catalogue.vectors @ vector), kind="stable"))
            items = take_turns(hits(search, texts, places, len(nearest)))
            lists.append(RankedItems(items, (1 / np.arange(1, len(items) + 1)).astype(np.float32)))
        return lists

    return rank


def hits(search: TextSearch, texts: Sequence[str], places: NDArray[np.int64], depth: int) -> list[NDArray[np.int64]]:
    """Each text's best items with a word in common, best first.

    Args:
        search: over the catalogue.
        texts: that look for items.
        places: (N,) in an order of all items, by which those of equal BM25 go.
        depth: longest list.
    """
    scores = search.scores(search.queries(texts))
    best, values = top_items(scores, np.full(len(texts), depth), places)
    return [items[score > 0] for items, score in zip(best, values, strict=True)]


def take_turns(lists: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Items of several lists in one: in each turn every list names its best item that has not been named."""
    named: dict[int, None] = {}
    under_way = [iter(items.tolist()) for items in lists]
    while under_way:
        going_on = []
        for items in under_way:
            item = next((each for each in items if each not in named), None)
            if item is not None:
                named[item] = None
                going_on.append(items)
        under_way = going_on
    return np.fromiter(named, np.int64)


class Writer:
    """Writes texts by beam search, or by drawing tokens by their probability.

    Args:
        settings: how many texts, and which way.
        tokens: of each text.
        banned: tokens that no text has.
    """

    def __init__(self, settings: GenerativeSettings, tokens: int, banned: Sequence[int]) -> None:
        self._width = settings.beams
        self._choose = self._drawn if settings.sample else self._best
        self._tokens = tokens
        self._banned = list(banned)

    def write(self, beams: Beams) -> list[Ids]:
        """Token ids of each prompt's texts, (W, tokens), the likeliest first."""
        generator = torch.Generator(beams.next.device).manual_seed(0)
        texts = beams.next.new_zeros(len(beams.scores), 1, 0, dtype=torch.long)
        for step in range(self._tokens):
            beams.next[..., self._banned] = -torch.inf
            parents, tokens, scores = self._choose(beams, generator)
            texts = texts.gather(1, parents[..., None].expand(-1, -1, step))
            texts = torch.cat([texts, tokens[..., None]], dim=2)
            if step + 1 < self._tokens:
                beams.step(parents, tokens, scores)
        order = scores.argsort(dim=1, descending=True, stable=True)
        texts = texts.gather(1, order[..., None].expand_as(texts))
        return list(texts.cpu().numpy())

    def _best(self, beams: Beams, _: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """The likeliest continuations: the text that each goes on from, its token, its score."""
        scores = (beams.scores[..., None] + beams.next).flatten(1)
        best, chosen = scores.topk(min(self._width, scores.shape[1]))
        words = beams.next.shape[2]
        return chosen // words, chosen % words, best

    def _drawn(self, beams: Beams, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """One continuation of each text by chance; the empty one has as many as there are to be texts."""
        rows, texts, words = beams.next.shape
        each = self._width // texts  # all of them at first, later one
        probabilities = beams.next.flatten(0, 1).exp()
        tokens = probabilities.multinomial(each, replacement=True, generator=generator).view(rows, -1)
        parents = torch.arange(texts, device=tokens.device).repeat_interleave(each).expand(rows, -1)
        gained = beams.next.flatten(1).gather(1, parents * words + tokens)
        return parents, tokens, beams.scores.gather(1, parents) + gained
