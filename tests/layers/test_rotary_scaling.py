"""Stretched rotary angles: what stays, what is divided; heads that are rotated in part."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from loquela.layers.positions import Rotary, rotary_frequencies, rotate
from loquela.layers.rotary_scaling import stretch_long_waves, yarn_frequencies, yarn_scale

dims = st.integers(2, 64).map(lambda half: 2 * half)
factors = st.floats(1, 64)
originals = st.integers(16, 8192)


@given(dims, factors, originals, st.floats(0.5, 2), st.floats(3, 9))
def test_llama3(dim: int, factor: float, original: int, low: float, high: float) -> None:
    before = rotary_frequencies(dim)
    after = stretch_long_waves(before, factor, low=low, high=high, original=original)
    turns = original * before / (2 * math.pi)
    assert torch.allclose(after[turns > high], before[turns > high])
    assert torch.allclose(after[turns < low], before[turns < low] / factor)
    assert (after <= before * 1.00001).all()
    assert (after >= before / factor * 0.99999).all()
    assert (after.diff() <= 0).all()  # waves keep their order


@given(dims, factors, originals, st.booleans())
def test_yarn(dim: int, factor: float, original: int, truncate: bool) -> None:
    before = rotary_frequencies(dim)
    after = yarn_frequencies(before, 10_000.0, factor, fast=32, slow=1, original=original, truncate=truncate)
    turns = original * before / (2 * math.pi)
    assert torch.allclose(after[turns > 33], before[turns > 33], rtol=1e-3) or dim < 8
    assert (after <= before * 1.00001).all()
    assert (after >= before / factor * 0.99999).all()


def test_nothing_is_stretched_by_one() -> None:
    before = rotary_frequencies(16)
    assert torch.allclose(stretch_long_waves(before, 1.0, low=1, high=4, original=64), before)
    assert torch.allclose(yarn_frequencies(before, 10_000.0, 1.0, fast=32, slow=1, original=64), before)
    assert yarn_scale(1.0) == 1.0
    assert math.isclose(yarn_scale(math.e), 1.1)


def test_the_rest_of_a_head_is_not_rotated() -> None:
    rotary = Rotary.at(torch.arange(5), rotary_frequencies(6))
    x = torch.randn(2, 3, 5, 10, requires_grad=True)
    turned = rotate(x, rotary)
    assert torch.equal(turned[..., 6:], x[..., 6:])
    assert torch.equal(turned[..., :6], rotate(x[..., :6], rotary))
    turned.square().sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 2 * x)  # a rotation keeps every length
