"""Texts that are written side by side after each of some prompts.

Shapes: B prompts, W texts after each, V vocabulary, S tokens read so far after each prompt.
"""

import torch
from torch import Tensor

from pixrec_core.models.continuation import Continuation


class Beams:
    """Texts under way, all of one length; one that is empty to begin with.

    Attributes:
        scores: (B, W) log-probability of each text so far; -inf for one that is given up.
        next: (B, W, V) log-probabilities of its next token.

    Args:
        prompts: that they follow.
    """

    def __init__(self, prompts: Continuation) -> None:
        self._prompts = prompts
        self.next = prompts.logits.float().log_softmax(-1)[:, None]
        self.scores = self.next.new_zeros(len(self.next), 1)
        self._follows = torch.zeros(*self.scores.shape, 0, dtype=torch.bool, device=self.scores.device)
        self._length = 0

    def step(self, parents: Tensor, tokens: Tensor, scores: Tensor) -> None:
        """Read one more token of each text.

        Args:
            parents: (B, W) which of the present texts each new one goes on from.
            tokens: (B, W) what it adds.
            scores: (B, W) of the new ones.
        """
        kept = self._follows.gather(1, parents[..., None].expand(-1, -1, self._follows.shape[2]))
        own = torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device).expand(len(tokens), -1, -1)
        self._follows = torch.cat([kept, own], dim=2)
        hidden = self._prompts.read(tokens, torch.full_like(tokens, self._length), self._follows)
        self.next = self._prompts.scores(hidden).float().log_softmax(-1)
        self.scores = scores
        self._length += 1
