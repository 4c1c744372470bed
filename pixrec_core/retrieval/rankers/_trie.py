"""A token trie of all texts of a catalogue, in flat arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pixrec_core.models.item_inputs import Ids

ROOT = 0
NONE = -1


@dataclass(frozen=True)
class Trie:
    """Nodes are numbered level by level from the root, so the children of a node are consecutive.

    Shapes: M nodes, U distinct texts, N items.

    Attributes:
        tokens: (M,) last token of the prefix that a node spells; undefined for the root.
        parents: (M,) parent node; the root is its own parent.
        first: (M,) first child of each node.
        past: (M,) one past the last child; equal to `first` for a leaf.
        ends_here: (M,) number of the text that ends at a node; -1 for none.
        ends: (U,) node at which each text ends; the root for the empty text.
        lengths: (U,) tokens of each text.
        text_of: (N,) number of each item's text; items with equal texts share it.
    """

    tokens: Ids
    parents: Ids
    first: Ids
    past: Ids
    ends_here: Ids
    ends: Ids
    lengths: Ids
    text_of: Ids

    @classmethod
    def from_texts(cls, texts: Sequence[Ids]) -> "Trie":
        """Build the trie from the token ids of each item's text."""
        table = np.full((len(texts), max(1, *map(len, texts))), NONE)
        for row, text in zip(table, texts, strict=True):
            row[: len(text)] = text
        rows, text_of = np.unique(table, axis=0, return_inverse=True)
        lengths = (rows != NONE).sum(axis=1)
        new, at = _node_ids(rows)
        depths, firsts = np.nonzero(new)
        parents = np.where(depths > 0, at[depths - 1, firsts], ROOT)
        nodes = np.arange(len(parents) + 1)
        first, past = (np.searchsorted(parents, nodes, side=side) + 1 for side in ("left", "right"))
        ends = np.where(lengths > 0, at[lengths - 1, np.arange(len(rows))], ROOT)
        ends_here = np.full(len(nodes), NONE)
        ends_here[ends] = np.arange(len(rows))
        tokens = np.concatenate([[0], rows.T[new]])
        return cls(tokens, np.concatenate([[ROOT], parents]), first, past, ends_here, ends, lengths, text_of.ravel())

    def items_of(self) -> list[NDArray[np.int64]]:
        """(U,) items of each text."""
        order = np.argsort(self.text_of, kind="stable")
        return np.split(order, np.searchsorted(self.text_of[order], np.arange(1, len(self.ends))))

    def paths(self, nodes: Ids) -> Ids:
        """Path from each node up to the root, padded with the root, (len(nodes), longest text)."""
        steps = [nodes]
        for _ in range(int(self.lengths.max()) - 1):
            steps.append(self.parents[steps[-1]])
        return np.stack(steps, axis=1)


def _node_ids(rows: Ids) -> tuple[NDArray[np.bool_], Ids]:
    """Number the distinct prefixes of sorted texts (U, T), shorter prefixes first.

    Returns:
        (T, U) whether a text is the first one with its prefix of each length, and (T, U) the node of that prefix.
    """
    changed = np.ones(rows.shape, dtype=bool)
    changed[1:] = np.logical_or.accumulate(rows[1:] != rows[:-1], axis=1)
    new = (changed & (rows != NONE)).T
    at = np.zeros(new.shape, dtype=np.int64)
    at[new] = np.arange(1, new.sum() + 1)
    return new, np.maximum.accumulate(at, axis=1)
