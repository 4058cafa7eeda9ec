"""The values that an adapter's tensors start from: drawn from one seed, or left out where a file will give them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Draw"]


@dataclass(frozen=True)
class Draw:
    """Makes tensors of `dtype` on `device`; without a `generator` they are on the meta device and take no memory."""

    generator: torch.Generator | None
    dtype: torch.dtype
    device: torch.device
    text: Tensor | None = None
    """The ids (n,) of a text to start from."""

    def filled(self, value: float, *shape: int) -> Tensor:
        """Every number is `value`."""
        return self.made(shape, lambda: torch.full(shape, value, dtype=self.dtype))

    def uniform(self, bound: float, *shape: int) -> Tensor:
        """U(±bound)."""
        return self.made(
            shape, lambda: torch.empty(shape, dtype=self.dtype).uniform_(-bound, bound, generator=self.generator)
        )

    def normal(self, std: float, *shape: int) -> Tensor:
        """N(0, std)."""
        return self.made(shape, lambda: torch.empty(shape, dtype=self.dtype).normal_(std=std, generator=self.generator))

    def integers(self, below: int, count: int) -> Tensor:
        """`count` whole numbers from 0 to below `below`."""
        return torch.randint(below, (count,), generator=self.generator)

    def made(self, shape: tuple[int, ...], make: Callable[[], Tensor]) -> Tensor:
        """What `make` returns, of this `shape`, where values are wanted."""
        if self.generator is None:
            return torch.empty(shape, dtype=self.dtype, device="meta")
        return make().detach().to(self.device, self.dtype)
