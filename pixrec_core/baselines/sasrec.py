"""SASRec: causal self-attention over the history (Kang and McAuley 2018, arXiv 1808.09781).

As strong as it is known to be: pre-norm blocks, and cross-entropy over the catalogue in place of
one negative a target.
"""

from torch import Tensor, nn

from pixrec_core.baselines import _sequence_training as training
from pixrec_core.baselines._contract import FittedModel, TrainData
from pixrec_core.baselines._sequence_windows import WINDOW

WIDTH = training.WIDTH
BLOCKS = 2
HEADS = 1


def fit(train_data: TrainData) -> FittedModel:
    """Train until validation no longer rises."""
    return training.fit(SelfAttention, train_data)


class SelfAttention(nn.Module):
    """Transformer blocks with learnt places; (B, L, WIDTH) -> (B, L, WIDTH)."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.places = nn.Embedding(WINDOW, WIDTH)
        nn.init.normal_(self.places.weight, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                WIDTH, HEADS, 4 * WIDTH, dropout, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(BLOCKS)
        )
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, items: Tensor) -> Tensor:
        # Padding stands after the items, where the causal mask hides it: it needs no mask of its own.
        length = items.shape[1]
        ahead = nn.Transformer.generate_square_subsequent_mask(length)
        states = self.dropout(items + self.places.weight[:length])
        for block in self.blocks:
            states = block(states, src_mask=ahead, is_causal=True)
        after: Tensor = self.norm(states)
        return after
