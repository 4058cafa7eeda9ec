"""A frozen matrix in 8 or 4 bits: read back, group by group, whenever it is used (QLoRA, arXiv:2305.14314).

Each row is cut into groups of `group` numbers; a group is stored as whole numbers from -q to q and one scale, its
largest magnitude divided by q (127 or 7). At 4 bits two numbers share a byte.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loquela.errors import UsageError

__all__ = ["QuantizedLinear"]

BITS = (4, 8)


class QuantizedLinear(nn.Linear):
    """`x Wᵀ + bias` with W in `bits` bits; gradients flow to `x`, never to W, of which no wide copy is kept."""

    codes: Tensor
    """(out, in) at 8 bits, (out, in / 2) at 4; two's complement, the even columns in the low half of a byte."""
    scales: Tensor
    """(out, in / group), in the dtype that the layer computes in."""
    bits: int
    group: int

    @classmethod
    def adopt(cls, linear: nn.Linear, bits: int, group: int = 64) -> None:
        """Turn `linear` into one of these, in place; its `weight` is no parameter any more, its bias is frozen."""
        weight = linear.weight.detach()
        out, width = weight.shape
        if bits not in BITS:
            raise UsageError(f"bits must be {' or '.join(map(str, BITS))}, but is {bits!r}")
        while width % group:  # a narrow matrix has smaller groups
            group //= 2
        if group < 2:
            raise UsageError(f"a matrix to be quantised must have an even width, but it has {width} columns")
        most = 2 ** (bits - 1) - 1
        grouped = weight.view(out, width // group, group)
        scales = grouped.abs().amax(-1) / most
        codes = (grouped / scales.clamp_min(torch.finfo(weight.dtype).tiny)[..., None]).round().to(torch.int8)
        codes = codes.view(out, width)
        if bits == 4:
            codes = (codes[:, 0::2] & 15) | (codes[:, 1::2] << 4)
        del linear.weight
        quantized: Any = linear
        quantized.__class__ = cls
        quantized.register_buffer("codes", codes.contiguous())
        quantized.register_buffer("scales", scales)
        quantized.bits, quantized.group = bits, group
        linear.requires_grad_(False)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """W (out, in) as it is computed with; a new tensor at every call."""
        codes = self.codes
        if self.bits == 4:
            low, high = (codes << 4) >> 4, codes >> 4  # arithmetic shifts keep the sign
            codes = torch.stack((low, high), dim=-1).flatten(1)
        grouped = codes.view(len(codes), -1, self.group).to(self.scales.dtype)
        return grouped.mul_(self.scales[..., None]).view(len(codes), -1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (…, in) to (…, out)."""
        y: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias


class _Product(torch.autograd.Function):
    """`x Wᵀ`; W is made anew on the way back, so that no wide copy of it waits there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.weight.to(gradient.dtype), None
