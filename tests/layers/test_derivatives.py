"""Derivatives written by hand equal those that finite differences give, and the formulas those of the papers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from loquela.layers.norms import rms_normalise
from loquela.layers.positions import Rotary, rotary_frequencies, rotate


@pytest.mark.parametrize("eps", [1e-6, 0.1])
def test_rms_normalise(eps: float) -> None:
    x = torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: rms_normalise(t, eps), x)
    torch.testing.assert_close(rms_normalise(x, eps), F.rms_norm(x, (7,), eps=eps))


def test_rms_normalise_of_zeros_and_of_half_precision() -> None:
    assert torch.equal(rms_normalise(torch.zeros(2, 4), 1e-6), torch.zeros(2, 4))
    large = torch.full((1, 4), 60_000.0, dtype=torch.float16)  # its square is no float16
    assert torch.equal(rms_normalise(large, 1e-6), torch.ones(1, 4, dtype=torch.float16))


def test_rotate() -> None:
    positions = torch.tensor([[0, 1, 2, 5], [3, 4, 100, 7]])
    rotary = Rotary.at(positions, rotary_frequencies(6).double())
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: rotate(t, rotary), x)
    turned = rotate(x, rotary)
    pairs = torch.complex(x[..., :3], x[..., 3:])
    angles = positions[:, None, :, None] * rotary_frequencies(6).double()
    expected = pairs * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(turned, torch.cat((expected.real, expected.imag), -1), rtol=1e-5, atol=1e-5)
    assert torch.equal(turned[0, :, 0], x[0, :, 0])  # position 0 stands still
