"""GRU4Rec: a recurrent network over the history (Hidasi et al. 2016, arXiv 1511.06939).

Trained with cross-entropy over the catalogue, which its authors' later losses come close to
(Hidasi and Karatzoglou 2018, arXiv 1706.03847).
"""

from torch import Tensor, nn

from pixrec_core.baselines import _sequence_training as training
from pixrec_core.baselines._contract import FittedModel, TrainData

WIDTH = training.WIDTH


def fit(train_data: TrainData) -> FittedModel:
    """Train until validation no longer rises."""
    return training.fit(Recurrent, train_data)


class Recurrent(nn.Module):
    """One layer of gated recurrent units; (B, L, WIDTH) -> (B, L, WIDTH)."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.units = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.out = nn.Sequential(nn.Dropout(dropout), nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH))

    def forward(self, items: Tensor) -> Tensor:
        states, _ = self.units(self.dropout(items))
        after: Tensor = self.out(states)
        return after
