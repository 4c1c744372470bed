"""Beam search restricted to texts of the catalogue, so every beam is a real item.

A trie of all texts lists the allowed next tokens. Probabilities are over the whole vocabulary: renormalising them over
the allowed tokens would favour prefixes that few items share. Items with equal texts are ordered by their vectors.
`generate` of transformers with a `prefix_allowed_tokens_fn` does not fit: it calls Python for every beam and step,
computes Qwen's positions from token ids only, where photos are features here, and ends texts by a token that was never
trained.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pixrec_core.retrieval.rankers import Catalogue, RankedItems, Ranker, UserBatch
from pixrec_core.retrieval.rankers._beams import Beams
from pixrec_core.retrieval.rankers._trie import ROOT, Trie
from pixrec_core.settings import GenerativeSettings


def create_ranker(catalogue: Catalogue, settings: GenerativeSettings) -> Ranker:
    """Build the trie of the catalogue's texts once."""
    trie = Trie.from_texts(catalogue.token_texts())
    items_of = trie.items_of()
    search = _Search.from_trie(trie, settings.beams, catalogue.model.device)

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
    """Arrays of a trie as tensors on the model's device, and the number of beams."""

    tokens: Tensor
    first: Tensor
    past: Tensor
    trie: Trie
    width: int

    @classmethod
    def from_trie(cls, trie: Trie, width: int, device: torch.device) -> "_Search":
        tokens, first, past = (torch.from_numpy(each).to(device) for each in (trie.tokens, trie.first, trie.past))
        return cls(tokens, first, past, trie, width)

    def run(self, beams: Beams) -> list[dict[int, float]]:
        """Likelihoods by text number of the complete texts that each prompt's beams reach."""
        found: list[dict[int, float]] = [{} for _ in beams.scores]
        nodes = torch.full(beams.scores.shape, ROOT, device=beams.scores.device)
        alive = self._can_extend(nodes, beams.scores)
        length = 0
        while alive.any():
            parents, nodes, scores = self._best_children(beams, nodes)
            length += 1
            self._record_complete_texts(found, nodes, scores / length)
            alive = self._can_extend(nodes, scores)
            if alive.any():
                beams.step(parents, self.tokens[nodes], scores.where(alive, -torch.inf))
        return found

    def _can_extend(self, nodes: Tensor, scores: Tensor) -> Tensor:
        return scores.isfinite() & (self.first[nodes] < self.past[nodes])

    def _best_children(self, beams: Beams, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Best continuations: the beams that they extend, their nodes and their scores, each (B, width) or narrower.

        The children of all beams are concatenated, then scattered into one row per prompt, padded with -inf.
        """
        counts = torch.where(beams.scores.isfinite(), self.past[nodes] - self.first[nodes], 0)
        flat, of_row = counts.flatten(), counts.sum(1)
        each = torch.arange(len(flat), device=flat.device).repeat_interleave(flat)  # beam of each child
        rows, parents = each // counts.shape[1], each % counts.shape[1]
        number = torch.arange(len(each), device=flat.device)
        children = self.first[nodes][rows, parents] + number - (flat.cumsum(0) - flat)[each]
        scores = beams.scores[rows, parents] + beams.next[rows, parents, self.tokens[children]]

        starts = of_row.cumsum(0) - of_row
        table = scores.new_full((len(counts), int(of_row.max())), -torch.inf)
        table[rows, number - starts[rows]] = scores
        best, chosen = table.topk(min(self.width, table.shape[1]))
        index = (starts[:, None] + chosen).clamp(max=len(each) - 1)
        return parents[index], children[index], best

    def _record_complete_texts(self, found: list[dict[int, float]], nodes: Tensor, likelihoods: Tensor) -> None:
        ends = self.trie.ends_here[nodes.cpu().numpy()]
        values = likelihoods.cpu().numpy()
        for row, column in zip(*np.nonzero((ends >= 0) & np.isfinite(values)), strict=True):
            found[row][int(ends[row, column])] = float(values[row, column])
