"""A mixture of experts against its formula, computed densely."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from loquela.layers.experts import MixtureOfExperts
from loquela.layers.feedforward import GatedFeedForward


def mixture(chosen: int, *, normalise: bool = True) -> MixtureOfExperts:
    torch.manual_seed(0)
    return MixtureOfExperts(
        8, (GatedFeedForward(8, 12, F.silu) for _ in range(5)), chosen, normalise=normalise
    ).double()


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("chosen", [1, 3, 5])
def test_the_sum_of_the_chosen_by_their_weights(chosen: int, normalise: bool) -> None:
    layer, x = mixture(chosen, normalise=normalise), torch.randn(2, 7, 8, dtype=torch.float64)
    shares = layer.router(x).softmax(-1)
    kept = shares * (shares >= shares.sort(-1, descending=True).values[..., chosen - 1 : chosen])
    weights = kept / kept.sum(-1, keepdim=True) if normalise else kept
    every = torch.stack([expert(x) for expert in layer.experts], dim=-1)  # (2, 7, 8, experts)
    torch.testing.assert_close(layer(x), (every * weights[..., None, :]).sum(-1), rtol=1e-6, atol=1e-6)


def test_a_token_does_not_see_its_neighbours() -> None:
    layer, x = mixture(2), torch.randn(3, 4, 8, dtype=torch.float64)
    alone = torch.stack([layer(token[None])[0] for token in x.flatten(0, 1)])
    torch.testing.assert_close(layer(x).flatten(0, 1), alone)


def test_experts_that_nobody_chose_learn_nothing_but_have_a_gradient() -> None:
    layer = mixture(1)
    with torch.no_grad():
        layer.router.weight.zero_()[2] = 1.0
    layer(torch.ones(1, 3, 8, dtype=torch.float64)).sum().backward()
    for index, expert in enumerate(layer.experts):
        gradients = [parameter.grad for parameter in expert.parameters()]
        assert all(gradient is not None for gradient in gradients)
        assert any(gradient.any() for gradient in gradients if gradient is not None) is (index == 2)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_so(dtype: torch.dtype) -> None:
    layer, x = mixture(2), torch.randn(1, 5, 8)
    expected = layer(x.double())
    got = layer.to(dtype)(x.to(dtype))
    assert got.dtype == dtype
    assert float((got.double() - expected).abs().max()) < 0.05
