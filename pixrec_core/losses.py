"""The mixed objective as pure functions of embeddings and logits (design: CALRec section 3.2).

loss = (1 - a - b) * L_NIG + a * L_TT + b * L_UT

L_NIG  next-item generation: cross-entropy of the target's text tokens
L_TT   InfoNCE(v_T|U, v_T): the target read after the history against items read alone
L_UT   InfoNCE(v_U, v_T): the history against items read alone
"""

import torch
from torch import Tensor
from torch.nn import functional


def info_nce(
    queries: Tensor,
    keys: Tensor,
    targets: Tensor,
    negatives: Tensor,
    temperature: float,
    offsets: Tensor | None = None,
    count: int | None = None,
) -> Tensor:
    """InfoNCE: cross-entropy of each query's target key against the keys that may be its negatives.

    Keys are distinct items, so no item counts twice, and the positive is never among its negatives.

    Args:
        queries: (M, D), L2-normalised.
        keys: (I, D), L2-normalised, one per distinct item.
        targets: (M,) row of `keys` that is the positive of each query.
        negatives: (M, I) bool, which keys may count against a query; the target's entry is ignored.
        temperature: tau; cosines are divided by it.
        offsets: (I,) added to the logits of each key: see `log_q_correction` and `Negatives`.
        count: queries of the whole batch over all ranks; by default M.

    Returns:
        Sum over queries divided by `count`, a scalar: their mean, or this rank's contribution to it.
    """
    with torch.autocast(queries.device.type, enabled=False):  # bfloat16 would blur cosines, and tau sharpens the blur
        logits = (queries.float() / temperature) @ keys.float().T
    if offsets is not None:
        logits += offsets
    is_class = negatives.scatter(1, targets[:, None], value=True)
    losses = functional.cross_entropy(logits.masked_fill_(~is_class, -torch.inf), targets, reduction="sum")
    return losses / (len(queries) if count is None else count)


def log_q_correction(counts: Tensor) -> Tensor:
    """LogQ correction: minus the log of each key's share of the counts (Yi et al., RecSys 2019, section 4).

    Popular items occur in more batches, so they are in-batch negatives more often than under uniform sampling; the
    correction compensates for that.

    Args:
        counts: (I,) training interactions of each key; all positive.
    """
    return -(counts / counts.sum()).log()


def next_item_generation(logits: Tensor, tokens: Tensor, count: int | None = None) -> Tensor:
    """Mean cross-entropy of target tokens.

    Args:
        logits: (T, V), of the position before each token: the caller shifts them.
        tokens: (T,) the tokens to be predicted.
        count: tokens of the whole batch over all ranks; by default T.

    Returns:
        Sum over tokens divided by `count`, a scalar; zero where there is nothing to predict (items without text).
    """
    if tokens.numel() == 0:
        return logits.sum()  # zero, still part of the graph
    return functional.cross_entropy(logits.float(), tokens, reduction="sum") / (len(tokens) if count is None else count)


def mix(generation: Tensor, item_item: Tensor, user_item: Tensor, a: float, b: float) -> Tensor:
    """(1 - a - b) * generation + a * item_item + b * user_item."""
    return (1 - a - b) * generation + a * item_item + b * user_item
