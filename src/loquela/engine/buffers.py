"""Rows of numbers that operations pass on, one for each token of a call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loquela.engine.memory import address, aligned
from loquela.engine.quantize import GROUP

__all__ = ["Buffer", "Columns", "Rounded"]


@dataclass(frozen=True)
class Columns:
    """Some neighbouring columns of a buffer."""

    address: int
    stride: int
    width: int


@dataclass
class Buffer:
    """Rows of float32, one per token of a call."""

    rows: int
    width: int
    stride: int = field(init=False)
    address: int = field(init=False)
    """Where the first row is."""
    held: Tensor = field(init=False)
    """What it holds (rows, width), to be read and written."""
    lent: list[Any] = field(init=False, default_factory=list)
    """Weak references to those who look at rows of it and must have copies before it is written again."""

    def __post_init__(self) -> None:
        self.stride = -(-self.width // 64) * 256
        array = aligned(self.rows * self.stride)
        self.address = address(array)
        self.held = torch.from_numpy(array.view(np.float32).reshape(self.rows, -1))[:, : self.width]

    def columns(self, first: int, count: int) -> Columns:
        """Return `count` columns from `first` on."""
        return Columns(self.address + 4 * first, self.stride, count)


@dataclass
class Rounded:
    """The int8 form of a buffer: codes, scales and sums of each row; see `kernels.quantise_row`."""

    rows: int
    width: int
    padded: int = field(init=False)
    stride: int = field(init=False)
    array: Any = field(init=False)

    def __post_init__(self) -> None:
        self.padded = -(-self.width // GROUP) * GROUP
        self.stride = -(-(self.padded + self.padded // GROUP * 8) // 64) * 64
        self.array = aligned(self.rows * self.stride)

    @property
    def address(self) -> int:
        """Where the first row is."""
        return address(self.array)
