"""Logits after cached prompts equal those of the backbone's own `forward` for each prompt with its text."""

import torch

from pixrec_core.models.continuation import Continuation
from tests.core.models.native_forward import native_logits
from tests.core.models.small import Small

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
WINDOWS = [[1, 2, 3], [4], [5, 0, 6]]  # items 0 and 4 have no photo; the first is longer than a sliding window


@torch.no_grad()
def test_several_texts_after_one_prompt_have_the_logits_of_each_alone(tower: Small) -> None:
    texts = [[7, 8, 9], [7, 8, 10], [11, 12]]
    # One token of each text at a time; the first two texts differ in the third token.
    continuation = Continuation(tower.model, tower.collator.generation_prompts(WINDOWS))
    rows = len(WINDOWS)
    steps = [
        ([7, 11], [0, 0], [[1, 0], [0, 1]]),
        ([8, 12], [1, 1], [[1, 0, 1, 0], [0, 1, 0, 1]]),
        ([9, 10], [2, 2], [[1, 0, 1, 0, 1, 0], [1, 0, 1, 0, 0, 1]]),
    ]
    logits = []
    for ids, depths, follows in steps:
        hidden = continuation.read(
            torch.tensor(ids).expand(rows, -1),
            torch.tensor(depths).expand(rows, -1),
            torch.tensor(follows, dtype=torch.bool).expand(rows, -1, -1),
        )
        logits.append(continuation.scores(hidden))
    for row, window in enumerate(WINDOWS):
        a, b, c = (native_logits(tower, window, text) for text in texts)
        torch.testing.assert_close(continuation.logits[row], a[0], **TOLERANCE)
        for step, (one, other) in enumerate(((a[1], c[1]), (a[2], c[2]), (a[3], b[3]))):
            torch.testing.assert_close(logits[step][row, 0], one, **TOLERANCE)
            torch.testing.assert_close(logits[step][row, 1], other, **TOLERANCE)
