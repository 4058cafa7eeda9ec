from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from loquela.errors import UsageError
from loquela.layers.quantized import QuantizedLinear


def linear(width: int = 128, out: int = 48, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(width)
    return nn.Linear(width, out, bias)


def adopted(layer: nn.Linear, bits: int, group: int = 64) -> QuantizedLinear:
    layer = copy.deepcopy(layer)
    QuantizedLinear.adopt(layer, bits, group)
    assert isinstance(layer, QuantizedLinear)
    return layer


@given(st.sampled_from([4, 8]), st.sampled_from([2, 8, 24, 64, 96, 130]), st.sampled_from([16, 64]))
def test_each_number_is_off_by_half_a_step_at_most(bits: int, width: int, group: int) -> None:
    layer = linear(width, 5)
    quantized = adopted(layer, bits, group)
    step = quantized.scales.repeat_interleave(quantized.group, dim=1)
    assert bool(((quantized.weight - layer.weight).abs() <= 0.5001 * step).all())
    again = nn.Linear(width, 5)
    again.weight = nn.Parameter(quantized.weight)
    again.bias = layer.bias
    torch.testing.assert_close(adopted(again, bits, group).weight, quantized.weight)  # what was read back is kept


@pytest.mark.parametrize("bits", [4, 8])
def test_it_computes_with_what_it_reads_back(bits: int) -> None:
    quantized = adopted(linear(), bits)
    x = torch.randn(3, 7, 128, requires_grad=True)
    y = quantized(x)
    expected = F.linear(x, quantized.weight, quantized.bias)
    torch.testing.assert_close(y, expected)
    g = torch.randn_like(y)
    (got,) = torch.autograd.grad(y, x, g)
    (wanted,) = torch.autograd.grad(expected, x, g)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(("bits", "share"), [(8, 0.27), (4, 0.145)])
def test_it_is_small_and_frozen(bits: int, share: float) -> None:
    layer = linear(512, 256)
    quantized = adopted(layer, bits)
    held = sum(b.numel() * b.element_size() for b in quantized.buffers())
    assert held <= share * layer.weight.numel() * 4
    assert [name for name, _ in quantized.named_parameters()] == ["bias"]
    assert not quantized.bias.requires_grad
    assert quantized(torch.randn(2, 512)).requires_grad is False


def test_a_row_of_zeros_stays_zero() -> None:
    layer = linear()
    with torch.no_grad():
        layer.weight[3] = 0
    assert bool((adopted(layer, 4).weight[3] == 0).all())


def test_what_cannot_be_stored_is_refused() -> None:
    for layer, bits in ((linear(), 3), (linear(63), 4)):
        with pytest.raises(UsageError):
            QuantizedLinear.adopt(layer, bits)
        assert type(layer) is nn.Linear
        assert isinstance(layer.weight, nn.Parameter)
