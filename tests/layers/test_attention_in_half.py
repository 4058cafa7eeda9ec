"""Learning through a short attention in bfloat16 on a CPU: plain products, as near to float32 as torch's own kernel."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from loquela.layers import attention as layer

KEYS = 40


def masks() -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    seen = torch.rand(3, 1, KEYS, KEYS, generator=generator) > 0.3
    return [None, seen | torch.eye(KEYS, dtype=torch.bool), torch.randn(1, 4, KEYS, KEYS, generator=generator)]


def learnt(attend: Callable[[Tensor, Tensor, Tensor], Tensor], dtype: torch.dtype) -> list[Tensor]:
    """What comes out, and the gradients of queries, keys and values."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(3, 4, KEYS, 16, generator=generator) for _ in range(4)]
    q, k, v = (x.to(dtype).requires_grad_() for x in (x.clone() for x in drawn[:3]))
    y = attend(q, k, v)
    assert y.dtype == dtype
    gradients = torch.autograd.grad(y, (q, k, v), drawn[3].to(dtype))
    return [x.detach().float() for x in (y, *gradients)]


def error(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]


@pytest.mark.parametrize(("mask", "causal"), [(0, False), (0, True), (1, False), (2, False)])
def test_it_is_as_near_as_torch_s_kernel(mask: int, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = masks()[mask]

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return layer.attention(q, k, v, mask=looked, causal=causal)

    def torch_s(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, looked, 0.0, causal)

    exact = learnt(torch_s, torch.float32)
    here = error(learnt(ours, torch.bfloat16), exact)
    there = error(learnt(torch_s, torch.bfloat16), exact)
    assert all(a < 2 * b for a, b in zip(here, there, strict=True)), (here, there)
    monkeypatch.setattr(layer, "_SHORT", KEYS - 1)
    assert error(learnt(ours, torch.bfloat16), exact) == there, "long ones are torch's"


def test_float32_and_what_learns_nothing_have_the_bits_of_torch_s_kernel() -> None:
    q = torch.randn(2, 4, KEYS, 16)
    for x in (q, q.bfloat16(), q.clone().requires_grad_()):
        assert torch.equal(
            layer.attention(x, x, x, causal=True), F.scaled_dot_product_attention(x, x, x, None, 0, True)
        )


def test_a_row_that_sees_nothing_gives_no_nan_to_the_others() -> None:
    seen = torch.ones(1, 1, KEYS, KEYS, dtype=torch.bool)
    seen[:, :, 3] = False
    x = torch.randn(2, 4, KEYS, 16).bfloat16().requires_grad_()
    y = layer.attention(x, x, x, mask=seen)
    y[:, :, 4:].float().square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert y.isfinite().all()


def test_under_autocast_it_is_the_same() -> None:
    x = torch.randn(2, 4, KEYS, 16).bfloat16().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        under = layer.attention(x, x, x, causal=True)
    half = x.detach().bfloat16().requires_grad_()
    assert torch.equal(under, layer.attention(half, half, half, causal=True))


def test_dropout_takes_weights_away() -> None:
    torch.manual_seed(0)
    x = torch.ones(1, 1, KEYS, 16).bfloat16().requires_grad_()
    y = layer.attention(x, x, x, dropout=0.5)
    assert y.float().std().item() > 0.05
    assert y.float().mean().item() == pytest.approx(1, abs=0.2)
