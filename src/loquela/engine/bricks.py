"""What the engine says of a network's bricks: their kinds, where adapters reach them, and what it does not know."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from loquela.errors import UsageError
from loquela.layers.feedforward import ACTIVATIONS
from loquela.layers.norms import RMSNorm
from loquela.models.gemma2 import GemmaNorm

__all__ = ["ACTIVATION_CODES", "Site", "bits_of_float", "kind_of", "norm_weight", "unknown"]

ACTIVATION_CODES: dict[Callable[[Tensor], Tensor], int] = {
    F.silu: 0,
    F.relu: 1,
    ACTIVATIONS["relu2"]: 2,
    ACTIVATIONS["gelu_new"]: 3,
    F.gelu: 4,
    F.tanh: 5,
}


@dataclass(frozen=True)
class Site:
    """A place that an adapter can reach: what it adds to is `width` columns of a buffer, from `column` on."""

    number: int
    group: int
    """The number of the first of the sites that are done together, side by side."""
    column: int
    width: int
    inputs: int
    """Numbers of what it reads."""
    scales: bool
    """Whether nothing else reads that, so that it can be multiplied in place."""


def kind_of(module: nn.Module) -> type[nn.Module]:
    """The class of a brick, without what adapters mixed into it: the engine computes what the base does."""
    return getattr(type(module), "undressed", type(module))


def unknown(what: str) -> UsageError:
    """The error for a brick that the engine does not know."""
    return UsageError(f"the compiled engine does not know {what}: use the torch engine")


def norm_weight(norm: Any) -> Tensor | None:
    """What a norm of root mean squares multiplies by; raises `UsageError` for one of another kind."""
    kind, weight = kind_of(norm), getattr(norm, "weight", None)
    if kind is not RMSNorm and kind is not GemmaNorm:
        raise unknown(f"a norm of kind {kind.__name__}")
    return weight if kind is RMSNorm or weight is None else 1.0 + weight.detach().float()


def bits_of_float(value: float) -> int:
    """The bits of a float32."""
    return int(struct.unpack("<I", struct.pack("<f", value))[0])
