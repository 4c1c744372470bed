"""GRU4Rec: a recurrent network over the history (Hidasi et al. 2016, arXiv 1511.06939).

It is trained with cross-entropy over the catalogue. The losses of the later paper (Hidasi and Karatzoglou 2018, arXiv
1706.03847) are close to it.
"""

from torch import Tensor, nn

from pixrec_core.recommenders import _sequence_training as training

WIDTH = training.WIDTH


class GruEncoder(nn.Module):
    """One layer of gated recurrent units; (B, L, WIDTH) -> (B, L, WIDTH)."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.units = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.out = nn.Sequential(nn.Dropout(dropout), nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH))

    def forward(self, items: Tensor) -> Tensor:
        states, _ = self.units(self.dropout(items))
        outputs: Tensor = self.out(states)
        return outputs


class Gru4Rec(training.SequenceModel):
    """A trained GRU4Rec."""

    encoder = GruEncoder


fit, load = Gru4Rec.fit, Gru4Rec.load
