"""All texts of a catalogue as one tree of tokens, in flat arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pixrec_core.models.item_inputs import Ids

ROOT = 0
NONE = -1


@dataclass(frozen=True)
class Trie:
    """Nodes are numbered level by level from the root, so that the children of a node stand together.

    Shapes: M nodes, U different texts, N items.

    Attributes:
        tokens: (M,) last token of what a node spells; the root's means nothing.
        parents: (M,) node before it; the root is its own.
        first: (M,) first child of each node.
        past: (M,) the one past its last child; equal to `first` where it has none.
        ends_here: (M,) number of the text that a node spells, -1 where it spells none.
        ends: (U,) node of each text; the root's where it is empty.
        lengths: (U,) tokens of each text.
        text_of: (N,) number of each item's text; equal texts share it.
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
    def of(cls, texts: Sequence[Ids]) -> "Trie":
        """Build it from the token ids of each item's text."""
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
        """Nodes from each one up to the root, filled with the root, (len(nodes), longest text)."""
        steps = [nodes]
        for _ in range(int(self.lengths.max()) - 1):
            steps.append(self.parents[steps[-1]])
        return np.stack(steps, axis=1)


def _node_ids(rows: Ids) -> tuple[NDArray[np.bool_], Ids]:
    """Number the distinct beginnings of sorted texts (U, T), shorter ones first.

    Returns:
        (T, U) whether a text is the first that begins as it does up to a depth, and (T, U) the node of that beginning.
    """
    changed = np.ones(rows.shape, dtype=bool)
    changed[1:] = np.logical_or.accumulate(rows[1:] != rows[:-1], axis=1)
    new = (changed & (rows != NONE)).T
    at = np.zeros(new.shape, dtype=np.int64)
    at[new] = np.arange(1, new.sum() + 1)
    return new, np.maximum.accumulate(at, axis=1)
