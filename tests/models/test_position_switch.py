"""Six kinds of positions on one decoder: each does what it says, and all decode, save and train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from loquela.checkpoint.store import load_model, save_model
from loquela.errors import ConfigError
from loquela.models.base import config_from_dict
from loquela.models.position_switch import POSITIONS, PositionSwitch, PositionSwitchConfig

TINY = {
    "model_type": "position_switch",
    "vocab_size": 37,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 48,
}
every_position = pytest.mark.parametrize("position", POSITIONS)


def make(position: str, **more: Any) -> PositionSwitch:
    config = config_from_dict({**TINY, "position": position, **more})
    assert isinstance(config, PositionSwitchConfig)
    network = PositionSwitch(config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for _, parameter in sorted(network.named_parameters()):
            parameter.copy_(0.3 * torch.randn_like(parameter) + (parameter.dim() == 1))
    return network


def assert_close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def tokens(batch: int, length: int) -> Tensor:
    return torch.randint(0, 37, (batch, length), generator=torch.Generator().manual_seed(length))


@every_position
@torch.no_grad()
def test_pieces_and_padding(position: str) -> None:
    network, ids = make(position), tokens(3, 40)
    expected, memory = network(ids), network.new_cache()
    got = torch.cat([network(part, cache=memory) for part in ids.split([1, 13, 1, 20, 5], dim=1)], dim=1)
    assert_close(got, expected)
    for real in (torch.arange(40) >= torch.tensor([[0], [9], [39]]), torch.arange(40) < torch.tensor([[40], [9], [1]])):
        together = network(ids, padding=real)
        for row in range(3):
            alone = network(ids[row : row + 1, real[row]])[0]
            assert_close(together[row, real[row]], alone)


@every_position
@torch.no_grad()
def test_saved_and_loaded_bit_for_bit(position: str, tmp_path: Path) -> None:
    network, ids = make(position), tokens(2, 20)
    save_model(network, None, tmp_path / "saved")
    again = load_model(tmp_path / "saved").network
    assert network.config.to_dict().items() <= again.config.to_dict().items()
    assert torch.equal(again(ids), network(ids))


@torch.no_grad()
def test_only_without_positions_does_the_order_of_the_past_not_matter() -> None:
    """One layer sees a bag of what came before, unless something tells where each token stands."""
    ids = tokens(1, 12)
    shuffled = torch.cat((ids[:, torch.randperm(11, generator=torch.Generator().manual_seed(1))], ids[:, 11:]), dim=1)
    for position in POSITIONS:
        network = make(position, num_hidden_layers=1)
        gap = float((network(ids)[0, -1] - network(shuffled)[0, -1]).abs().max())
        assert (gap < 1e-5) is (position == "none"), (position, gap)


@pytest.mark.parametrize("position", ["rotary", "relative", "alibi", "none"])
@torch.no_grad()
def test_where_only_distance_counts_a_shift_changes_nothing(position: str) -> None:
    network, ids = make(position), tokens(1, 20)
    moved = torch.cat((tokens(1, 9), ids), dim=1)
    real = torch.arange(29) >= 9
    far = network.decoder(
        network.token_embedding(moved),
        rotary=network.rotary(torch.arange(100, 129)) if position == "rotary" else None,
        padding=real[None],
        bias=network.bias(29, 29),
    )[:, 9:]
    assert_close(far, network.hidden(ids))


@torch.no_grad()
def test_alibi_is_the_formula_of_the_paper() -> None:
    """Head h of 4 loses 2^(-2h) for each token of distance (arXiv:2108.12409, 3)."""
    bias = make("alibi").bias(2, 5)
    assert bias is not None
    for head, slope in enumerate((2**-2, 2**-4, 2**-6, 2**-8)):
        assert torch.allclose(bias[head, 1], -slope * torch.tensor([4.0, 3, 2, 1, 0]))
        assert torch.allclose(bias[head, 0, :4], -slope * torch.tensor([3.0, 2, 1, 0]))


@every_position
@pytest.mark.parametrize("tied", [False, True])
def test_each_learns_from_its_own_beginning(position: str, tied: bool) -> None:
    config = config_from_dict({**TINY, "position": position, "tie_word_embeddings": tied})
    assert isinstance(config, PositionSwitchConfig)
    torch.manual_seed(0)
    network = PositionSwitch(config)
    network.initialise()
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    losses = []
    for _ in range(40):
        ids = torch.randint(0, 37, (16, 1)) + torch.arange(24)[None]  # to count on from any number
        ids %= 37
        optimizer.zero_grad()
        loss = F.cross_entropy(network(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())
    assert losses[-1] < 0.5 * losses[0], losses


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"position": "rotery"}, "did you mean 'rotary'"),
        ({"position": None}, "position must be one of"),
        ({"position": "alibi", "rope_theta": 1e4}, "rope_theta needs position='rotary'"),
        ({"position": "rotary", "relative_attention_num_buckets": 8}, "needs position='relative'"),
        ({"position": "relative", "relative_attention_max_distance": 16}, "more than half"),
        ({"position": "relative", "relative_attention_num_buckets": 1}, "more than half"),
    ],
)
def test_what_means_nothing_is_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        config_from_dict({**TINY, **wrong})
