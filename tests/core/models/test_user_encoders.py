"""User encoders: one pass over a sequence equals one history at a time, and nothing sees a later item."""

import math

import pytest
import torch

from pixrec_core.models.user_encoders import DAY_MS, PooledHistory, UserEncoder, create_user_encoder

DIM, LENGTH = 8, 5  # longest history; a training sequence has one item more
KINDS = ["mean", "gru", "transformer"]


@pytest.fixture(params=KINDS)
def encoder(request: pytest.FixtureRequest) -> UserEncoder:
    """An encoder of random weights, none of which is zero."""
    torch.manual_seed(0)
    encoder = create_user_encoder(request.param, DIM, LENGTH, dropout=0.1)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder.eval()


def sequences() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Item vectors (3, 6, 8), times and lengths; the rows are padded with zeros."""
    lengths = torch.tensor([6, 4, 2])
    real = torch.arange(LENGTH + 1) < lengths[:, None]
    times = torch.randint(0, 5, real.shape).cumsum(1) * DAY_MS
    return torch.randn(*real.shape, DIM) * real[..., None], times * real, lengths


@torch.no_grad()
def test_one_pass_equals_one_history_at_a_time(encoder: UserEncoder) -> None:
    items, times, lengths = sequences()
    passed = encoder.before_each(items, times, lengths)
    for row, length in enumerate(lengths.tolist()):
        for end in range(1, length):
            alone = encoder.newest(items[row : row + 1, :end], times[row : row + 1, :end], torch.tensor([end]))
            torch.testing.assert_close(passed[row, end], alone[0])


@torch.no_grad()
def test_histories_of_a_batch_equal_each_alone(encoder: UserEncoder) -> None:
    items, times, lengths = sequences()
    items, times, lengths = items[:, :LENGTH], times[:, :LENGTH], lengths.clamp(max=LENGTH)
    together = encoder.newest(items, times, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = encoder.newest(items[row : row + 1, :length], times[row : row + 1, :length], torch.tensor([length]))
        torch.testing.assert_close(together[row], alone[0])


@torch.no_grad()
def test_a_later_item_changes_no_earlier_vector(encoder: UserEncoder) -> None:
    items, times, lengths = sequences()
    changed, later = items.clone(), times.clone()
    changed[:, 3], later[:, 3:] = 9.0, later[:, 3:] + 7 * DAY_MS
    before, after = encoder.before_each(items, times, lengths), encoder.before_each(changed, later, lengths)
    torch.testing.assert_close(before[:, :4], after[:, :4], rtol=0, atol=0)
    assert not torch.allclose(before[0, 4:], after[0, 4:])


def test_every_weight_has_a_gradient(encoder: UserEncoder) -> None:
    items, times, lengths = sequences()
    encoder.train().before_each(items, times, lengths).square().sum().backward()
    assert not [name for name, each in encoder.named_parameters() if each.grad is None or not each.grad.any()]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_kind_starts_as_the_mean_weighted_by_position(kind: str) -> None:
    items, times, lengths = sequences()
    encoder = create_user_encoder(kind, DIM, LENGTH, dropout=0.1).eval()
    vector = torch.nn.functional.normalize(encoder.newest(items[1:2, :4], times[1:2, :4], lengths[1:2]), dim=-1)
    weights = torch.tensor([4.0, 3.0, 2.0, 1.0]) ** -0.5  # newest last
    torch.testing.assert_close(vector[0], torch.nn.functional.normalize(weights @ items[1, :4], dim=-1))


@torch.no_grad()
def test_weights_by_hand() -> None:
    encoder = PooledHistory(dim=2, max_history_len=2)
    encoder.positions.copy_(torch.tensor([0.0, 1.0]))
    encoder.gap.copy_(torch.tensor(2.0))
    encoder.query.copy_(torch.tensor([0.5, 0.0]))
    items = torch.tensor([[[5.0, 5.0], [1.0, 0.0], [0.0, 1.0]]])  # the first is older than two positions
    times = torch.tensor([[0, 0, 3]]) * DAY_MS
    older = math.exp(1.0 + 2.0 * math.log(4.0) + 0.5)
    torch.testing.assert_close(encoder.newest(items, times, torch.tensor([3])), torch.tensor([[older, 1.0]]))


@torch.no_grad()
def test_the_history_of_an_item_of_a_basket_has_the_rest_of_the_basket() -> None:
    encoder = PooledHistory(dim=3, max_history_len=4)
    encoder.positions.zero_()
    items, times = torch.eye(4, 3)[None], torch.tensor([[1, 1, 2, 0]])  # the last row is padding
    before = encoder.before_each(items, times, torch.tensor([3]), ties=True)[0, :3]
    assert before.tolist() == [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]
    assert encoder.before_each(items, times, torch.tensor([3]))[0, 0].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("dim", "heads"), [(8, 4), (6, 2), (5, 1), (300, 4), (150, 2)])
def test_a_transformer_takes_any_dimension(dim: int, heads: int) -> None:
    encoder = create_user_encoder("transformer", dim, LENGTH, dropout=0.1)
    assert encoder.layers.layers[0].self_attn.num_heads == heads
    vector = encoder.newest(torch.randn(1, 2, dim), torch.zeros(1, 2, dtype=torch.long), torch.tensor([2]))
    assert vector.shape == (1, dim)
