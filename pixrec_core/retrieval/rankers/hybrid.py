"""The nearest items put in order anew by how likely their texts are after the history.

Cosines and likelihoods of one user's candidates are each brought to mean 0 and deviation 1, and
mixed by `likelihood_weight`; so the weight means the same for every model. A candidate without a
text counts as no likelier than the least likely one.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pixrec_core.models.continuation import Continuation
from pixrec_core.models.item_inputs import Ids
from pixrec_core.retrieval.rankers._contract import Catalogue, RankedItems, Ranker, UserBatch
from pixrec_core.retrieval.rankers._trie import ROOT, Trie
from pixrec_core.settings import GenerativeSettings

Values = NDArray[np.float64]

TEXTS_AT_A_TIME = 32  # of one user; attention among their tokens grows with the square of their number


def make(catalogue: Catalogue, settings: GenerativeSettings) -> Ranker:
    """Build the trie of the catalogue's texts once: candidates that begin alike are read once up to where they part."""
    trie = Trie.of(catalogue.token_texts())

    def rank(users: UserBatch) -> list[RankedItems]:
        candidates = [row[row >= 0] for row in users.nearest[:, : settings.candidates]]
        texts = [trie.text_of[items] for items in candidates]
        found = likelihoods(catalogue.read(users.histories), trie, texts, catalogue.model.device)
        lists = []
        for items, cosines, values in zip(candidates, users.cosines, found, strict=True):
            scores = mix(cosines[: len(items)], values, settings.likelihood_weight)
            order = np.argsort(-scores, kind="stable")  # equals stay as near as they are
            lists.append(RankedItems(items[order], scores[order].astype(np.float32)))
        return lists

    return rank


def mix(cosines: NDArray[np.float32], likelihoods: Values, weight: float) -> Values:
    """Scores of one user's candidates, (k,).

    Args:
        cosines: (k,).
        likelihoods: (k,), NaN for a candidate without a text.
        weight: of the likelihoods, 0 to 1; the cosines have the rest.
    """
    known = likelihoods[np.isfinite(likelihoods)]
    filled = np.where(np.isfinite(likelihoods), likelihoods, known.min(initial=np.inf) if len(known) else 0.0)
    return (1 - weight) * _standard(cosines.astype(np.float64)) + weight * _standard(filled)


def _standard(values: Values) -> Values:
    """Mean 0 and deviation 1; all 0 where there is no difference."""
    deviation = values.std()
    return (values - values.mean()) / deviation if deviation > 0 else np.zeros_like(values)


def likelihoods(prompts: Continuation, trie: Trie, texts: Sequence[Ids], device: torch.device) -> list[Values]:
    """Mean log-probability of the tokens of some texts after each prompt; NaN for an empty text.

    Args:
        prompts: B of them.
        trie: of all texts.
        texts: (B,) of (k,) numbers of texts.
        device: the model's.
    """
    distinct = [np.unique(each) for each in texts]  # in the trie's order, so that what begins alike stays together
    parts: list[list[Values]] = [[] for _ in texts]
    for start in range(0, max(map(len, distinct)), TEXTS_AT_A_TIME):
        some = [each[start : start + TEXTS_AT_A_TIME] for each in distinct]
        for found, values in zip(parts, _at_once(prompts, trie, some, device), strict=True):
            found.append(values)
        prompts.crop_cache()
    return [
        np.concatenate(values)[own.searchsorted(each)] for values, own, each in zip(parts, distinct, texts, strict=True)
    ]


def _at_once(prompts: Continuation, trie: Trie, texts: Sequence[Ids], device: torch.device) -> Iterator[Values]:
    """`likelihoods` of so many texts that they are read at once, as one tree: a token sees only what it follows."""
    paths = [trie.paths(trie.ends[each]) for each in texts]
    nodes = [np.setdiff1d(path, [ROOT]) for path in paths]
    inner = [np.setdiff1d(trie.parents[each], [ROOT]) for each in nodes]  # a last token is not read, only predicted
    hidden = _read(prompts, trie, inner, device)
    for row, (path, each, before) in enumerate(zip(paths, nodes, inner, strict=True)):
        logits = torch.cat([prompts.logits[row, None], prompts.scores(hidden[row, : len(before)])])
        parents = np.concatenate([[ROOT], before]).searchsorted(trie.parents[each])
        chosen = torch.from_numpy(np.stack([parents, trie.tokens[each]])).to(device)
        gained = np.zeros(len(trie.tokens))
        gained[each] = logits.float().log_softmax(-1)[chosen[0], chosen[1]].cpu().numpy()
        lengths = trie.lengths[texts[row]]
        yield np.where(lengths > 0, gained[path].sum(axis=1) / np.maximum(lengths, 1), np.nan)


def _read(prompts: Continuation, trie: Trie, nodes: Sequence[Ids], device: torch.device) -> torch.Tensor:
    """Hidden states at nodes of the trie after each prompt, (B, W, H); rows are filled up with what nobody sees."""
    width = max(1, *map(len, nodes))
    ids, depths = np.zeros((2, len(nodes), width), np.int64)
    follows = np.broadcast_to(np.eye(width, dtype=bool), (len(nodes), width, width)).copy()
    for row, each in enumerate(nodes):
        ids[row, : len(each)] = trie.tokens[each]
        path = trie.paths(each)
        depths[row, : len(each)] = (path != ROOT).sum(axis=1) - 1
        places, steps = np.nonzero(path != ROOT)
        follows[row, places, each.searchsorted(path[places, steps])] = True
    return prompts.read(*(torch.from_numpy(array).to(device) for array in (ids, depths, follows)))
