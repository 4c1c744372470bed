"""SASRec: causal self-attention over the history (Kang and McAuley 2018, arXiv 1808.09781).

It has the improvements of later work: pre-norm blocks, and cross-entropy over the catalogue instead of one negative per
target.
"""

from torch import Tensor, nn

from pixrec_core.recommenders import _sequence_training as training

WIDTH, WINDOW = training.WIDTH, training.WINDOW
BLOCKS = 2
HEADS = 1


class SelfAttention(nn.Module):
    """Transformer blocks with learnt position embeddings; (B, L, WIDTH) -> (B, L, WIDTH)."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.positions = nn.Embedding(WINDOW, WIDTH)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                WIDTH, HEADS, 4 * WIDTH, dropout, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(BLOCKS)
        )
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, items: Tensor) -> Tensor:
        # Padding follows the items, so the causal mask hides it.
        length = items.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        states = self.dropout(items + self.positions.weight[:length])
        for block in self.blocks:
            states = block(states, src_mask=mask, is_causal=True)
        outputs: Tensor = self.norm(states)
        return outputs


class SasRec(training.SequenceModel):
    """A trained SASRec."""

    encoder = SelfAttention


fit, load = SasRec.fit, SasRec.load
