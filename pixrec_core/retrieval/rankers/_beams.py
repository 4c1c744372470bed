"""State of a beam search: partial texts in parallel after each prompt.

Shapes: B prompts, W texts per prompt, V vocabulary, S tokens read so far after each prompt.
"""

import torch
from torch import Tensor

from pixrec_core.models.continuation import Continuation


class Beams:
    """Partial texts of equal length; initially one empty text per prompt.

    Attributes:
        scores: (B, W) log-probability of each text so far; -inf for a pruned text.
        next: (B, W, V) log-probabilities of its next token.

    Args:
        prompts: the encoded prompts.
    """

    def __init__(self, prompts: Continuation) -> None:
        self._prompts = prompts
        self.next = prompts.logits.float().log_softmax(-1)[:, None]
        self.scores = self.next.new_zeros(len(self.next), 1)
        self._follows = torch.zeros(*self.scores.shape, 0, dtype=torch.bool, device=self.scores.device)
        self._length = 0

    def step(self, parents: Tensor, tokens: Tensor, scores: Tensor) -> None:
        """Extend the texts by one token.

        Args:
            parents: (B, W) index of the current text that each new one extends.
            tokens: (B, W) the token that it adds.
            scores: (B, W) of the new texts.
        """
        prefix = self._follows.gather(1, parents[..., None].expand(-1, -1, self._follows.shape[2]))
        itself = torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device).expand(len(tokens), -1, -1)
        self._follows = torch.cat([prefix, itself], dim=2)
        hidden = self._prompts.read(tokens, torch.full_like(tokens, self._length), self._follows)
        self.next = self._prompts.scores(hidden).float().log_softmax(-1)
        self.scores = scores
        self._length += 1
