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
    """Contrastive cross-entropy of each query's own key against the keys that may be its negatives.

    Keys are distinct items, so a popular item never stands twice among the negatives, and an item
    equal to the positive is the positive itself.

    Args:
        queries: (M, D), L2-normalised.
        keys: (I, D), L2-normalised, one a distinct item.
        targets: (M,) row of `keys` that answers each query.
        negatives: (M, I) bool, which keys may count against a query; the target's entry is ignored.
        temperature: tau; cosines are divided by it.
        offsets: (I,) added to the logits of each key: see `log_q_correction` and `Negatives`.
        count: queries of the whole batch, where these are one process's share of them; by default M.

    Returns:
        Sum over queries divided by `count`, a scalar: their mean, or what a share adds to it. On zero vectors the
        mean is that of log(1 + negatives of a query).
    """
    with torch.autocast(queries.device.type, enabled=False):  # bfloat16 would blur cosines, and tau sharpens the blur
        logits = queries.float() @ keys.float().T / temperature
    if offsets is not None:
        logits = logits + offsets
    kept = negatives.scatter(1, targets[:, None], value=True)
    losses = functional.cross_entropy(logits.masked_fill(~kept, -torch.inf), targets, reduction="sum")
    return losses / (len(queries) if count is None else count)


def log_q_correction(counts: Tensor) -> Tensor:
    """Minus the log of each key's share of the training interactions (Yi et al., RecSys 2019, section 4).

    The batch draws an item as often as it is bought, so it meets popular ones as negatives more often
    than the whole catalogue would; this takes the excess back.

    Args:
        counts: (I,) training interactions of each key; all positive.
    """
    return -(counts / counts.sum()).log()


def next_item_generation(logits: Tensor, tokens: Tensor, count: int | None = None) -> Tensor:
    """Mean cross-entropy of target tokens.

    Args:
        logits: (T, V), of the position before each token: the shift is done by whoever gathers them.
        tokens: (T,) the tokens to be predicted.
        count: tokens of the whole batch, where these are one process's share of them; by default T.

    Returns:
        Sum over tokens divided by `count`, a scalar; zero where there is nothing to predict (items without text).
    """
    if tokens.numel() == 0:
        return logits.sum()  # zero, still part of the graph
    return functional.cross_entropy(logits.float(), tokens, reduction="sum") / (len(tokens) if count is None else count)


def mix(generation: Tensor, item_item: Tensor, user_item: Tensor, a: float, b: float) -> Tensor:
    """(1 - a - b) * generation + a * item_item + b * user_item."""
    return (1 - a - b) * generation + a * item_item + b * user_item
