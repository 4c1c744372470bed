"""Beam search that can only spell texts of the catalogue, so that every beam is a real item.

A trie of all texts names the tokens that may come next. Probabilities are those over the whole
vocabulary, not shared out among what is allowed: that would favour beginnings that few items have.
Items of one text are told apart by their vectors. transformers' `generate` with a
`prefix_allowed_tokens_fn` would call Python for every beam and step, find Qwen's positions only from
token ids where photos here come as features, and end texts by a token that was never trained.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pixrec_core.retrieval.rankers._beams import Beams
from pixrec_core.retrieval.rankers._contract import Catalogue, RankedItems, Ranker, UserBatch
from pixrec_core.retrieval.rankers._trie import ROOT, Trie
from pixrec_core.settings import GenerativeSettings


def make(catalogue: Catalogue, settings: GenerativeSettings) -> Ranker:
    """Build the trie of the catalogue's texts once."""
    trie = Trie.of(catalogue.token_texts())
    items_of = trie.items_of()
    search = _Search.over(trie, settings.beams, catalogue.model.device)

    def rank(users: UserBatch) -> list[RankedItems]:
        found = search.run(Beams(catalogue.read(users.histories)))
        lists = []
        for texts, vector in zip(found, users.vectors, strict=True):
            items = np.concatenate([items_of[text] for text in texts] or [np.empty(0, np.int64)])
            scores = np.array([texts[text] for text in trie.text_of[items].tolist()], np.float32)
            order = np.lexsort([-(catalogue.vectors[items] @ vector), -scores])
            lists.append(RankedItems(items[order], scores[order]))
        return lists

    return rank


@dataclass(frozen=True)
class _Search:
    """Arrays of a trie as tensors on the model's device, and how many beams to keep."""

    tokens: Tensor
    first: Tensor
    past: Tensor
    trie: Trie
    width: int

    @classmethod
    def over(cls, trie: Trie, width: int, device: torch.device) -> "_Search":
        tokens, first, past = (torch.from_numpy(each).to(device) for each in (trie.tokens, trie.first, trie.past))
        return cls(tokens, first, past, trie, width)

    def run(self, beams: Beams) -> list[dict[int, float]]:
        """Number and likelihood of the texts that each prompt's beams have spelt to their end."""
        found: list[dict[int, float]] = [{} for _ in beams.scores]
        nodes = torch.full(beams.scores.shape, ROOT, device=beams.scores.device)
        alive = self._goes_on(nodes, beams.scores)
        length = 0
        while alive.any():
            parents, nodes, scores = self._best(beams, nodes)
            length += 1
            self._note(found, nodes, scores / length)
            alive = self._goes_on(nodes, scores)
            if alive.any():
                beams.step(parents, self.tokens[nodes], scores.where(alive, -torch.inf))
        return found

    def _goes_on(self, nodes: Tensor, scores: Tensor) -> Tensor:
        return scores.isfinite() & (self.first[nodes] < self.past[nodes])

    def _best(self, beams: Beams, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which beams to go on from, to which children, and the children's scores; (B, width) or fewer.

        Children are laid end to end, and each prompt's moved to a row of its own, -inf where the row has no more.
        """
        counts = torch.where(beams.scores.isfinite(), self.past[nodes] - self.first[nodes], 0)
        flat, of_row = counts.flatten(), counts.sum(1)
        each = torch.arange(len(flat), device=flat.device).repeat_interleave(flat)  # the beam of each child
        rows, parents = each // counts.shape[1], each % counts.shape[1]
        number = torch.arange(len(each), device=flat.device)
        children = self.first[nodes][rows, parents] + number - (flat.cumsum(0) - flat)[each]
        scores = beams.scores[rows, parents] + beams.next[rows, parents, self.tokens[children]]

        starts = of_row.cumsum(0) - of_row
        table = scores.new_full((len(counts), int(of_row.max())), -torch.inf)
        table[rows, number - starts[rows]] = scores
        best, chosen = table.topk(min(self.width, table.shape[1]))
        place = (starts[:, None] + chosen).clamp(max=len(each) - 1)
        return parents[place], children[place], best

    def _note(self, found: list[dict[int, float]], nodes: Tensor, likelihoods: Tensor) -> None:
        ends = self.trie.ends_here[nodes.cpu().numpy()]
        values = likelihoods.cpu().numpy()
        for row, column in zip(*np.nonzero((ends >= 0) & np.isfinite(values)), strict=True):
            found[row][int(ends[row, column])] = float(values[row, column])
