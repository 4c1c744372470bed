"""The nearest items, re-ranked by the likelihood of their texts after the history.

Cosines and likelihoods of one user's candidates are standardised and then mixed with `likelihood_weight`, so the weight
means the same for every model. A candidate without a text gets the smallest likelihood among the candidates.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pixrec_core.models.continuation import Continuation
from pixrec_core.models.item_inputs import Ids
from pixrec_core.retrieval.rankers import Catalogue, RankedItems, Ranker, UserBatch
from pixrec_core.retrieval.rankers._trie import ROOT, Trie
from pixrec_core.settings import GenerativeSettings

Values = NDArray[np.float64]

TEXTS_PER_BATCH = 32  # of one user; attention grows with the square of their total length


def create_ranker(catalogue: Catalogue, settings: GenerativeSettings) -> Ranker:
    """Build the trie of the catalogue's texts once, so that the model reads a common prefix of candidates once."""
    trie = Trie.from_texts(catalogue.token_texts())

    def rank(users: UserBatch) -> list[RankedItems]:
        candidates = [row[row >= 0] for row in users.nearest[:, : settings.candidates]]
        texts = [trie.text_of[items] for items in candidates]
        found = text_likelihoods(catalogue.read(users.histories), trie, texts, catalogue.model.device)
        lists = []
        for items, cosines, values in zip(candidates, users.cosines, found, strict=True):
            scores = mix_scores(cosines[: len(items)], values, settings.likelihood_weight)
            order = np.argsort(-scores, kind="stable")  # ties keep the dense order
            lists.append(RankedItems(items[order], scores[order].astype(np.float32)))
        return lists

    return rank


def mix_scores(cosines: NDArray[np.float32], likelihoods: Values, weight: float) -> Values:
    """Scores of one user's candidates, (k,).

    Args:
        cosines: (k,).
        likelihoods: (k,), NaN for a candidate without a text.
        weight: weight of the likelihoods, 0 to 1; the cosines have weight 1 - `weight`.
    """
    known = likelihoods[np.isfinite(likelihoods)]
    filled = np.where(np.isfinite(likelihoods), likelihoods, known.min(initial=np.inf) if len(known) else 0.0)
    return (1 - weight) * _standardise(cosines.astype(np.float64)) + weight * _standardise(filled)


def _standardise(values: Values) -> Values:
    """Values with mean 0 and standard deviation 1; all 0 if they are equal."""
    deviation = values.std()
    return (values - values.mean()) / deviation if deviation > 0 else np.zeros_like(values)


def text_likelihoods(prompts: Continuation, trie: Trie, texts: Sequence[Ids], device: torch.device) -> list[Values]:
    """Mean log-probability of the tokens of some texts after each of B prompts; NaN for an empty text.

    `texts` are B arrays of text numbers of the trie; the results have their shapes.
    """
    distinct = [np.unique(each) for each in texts]  # in trie order: texts with a common prefix share a batch
    parts: list[list[Values]] = [[] for _ in texts]
    for start in range(0, max(map(len, distinct)), TEXTS_PER_BATCH):
        some = [each[start : start + TEXTS_PER_BATCH] for each in distinct]
        for found, values in zip(parts, _likelihoods_of_batch(prompts, trie, some, device), strict=True):
            found.append(values)
        prompts.crop_cache()
    return [
        np.concatenate(values)[unique.searchsorted(each)]
        for values, unique, each in zip(parts, distinct, texts, strict=True)
    ]


def _likelihoods_of_batch(
    prompts: Continuation, trie: Trie, texts: Sequence[Ids], device: torch.device
) -> Iterator[Values]:
    """`text_likelihoods` of one batch of texts, read as one tree: a token attends only to its prefix."""
    paths = [trie.paths(trie.ends[each]) for each in texts]
    nodes = [np.setdiff1d(path, [ROOT]) for path in paths]
    inner = [np.setdiff1d(trie.parents[each], [ROOT]) for each in nodes]  # a last token is only predicted
    hidden = _hidden_states(prompts, trie, inner, device)
    for row, (path, each, before) in enumerate(zip(paths, nodes, inner, strict=True)):
        logits = torch.cat([prompts.logits[row, None], prompts.scores(hidden[row, : len(before)])])
        parents = np.concatenate([[ROOT], before]).searchsorted(trie.parents[each])
        chosen = torch.from_numpy(np.stack([parents, trie.tokens[each]])).to(device)
        gained = np.zeros(len(trie.tokens))
        gained[each] = logits.float().log_softmax(-1)[chosen[0], chosen[1]].cpu().numpy()
        lengths = trie.lengths[texts[row]]
        yield np.where(lengths > 0, gained[path].sum(axis=1) / np.maximum(lengths, 1), np.nan)


def _hidden_states(prompts: Continuation, trie: Trie, nodes: Sequence[Ids], device: torch.device) -> torch.Tensor:
    """Hidden states at nodes of the trie after each prompt, (B, W, H); shorter rows have padding that no token sees."""
    width = max(1, *map(len, nodes))
    ids, depths = np.zeros((2, len(nodes), width), np.int64)
    follows = np.broadcast_to(np.eye(width, dtype=bool), (len(nodes), width, width)).copy()
    for row, each in enumerate(nodes):
        ids[row, : len(each)] = trie.tokens[each]
        path = trie.paths(each)
        depths[row, : len(each)] = (path != ROOT).sum(axis=1) - 1
        positions, steps = np.nonzero(path != ROOT)
        follows[row, positions, each.searchsorted(path[positions, steps])] = True
    return prompts.read(*(torch.from_numpy(array).to(device) for array in (ids, depths, follows)))
