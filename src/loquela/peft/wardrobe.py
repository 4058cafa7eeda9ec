"""Who wears what: the layers of a network with adapters, and which rows of a batch wear which adapter right now.

A layer that adapters reach becomes an instance of a subclass of its own class: the same object with the same parameters
under the same names, whose `forward` looks at what is worn. `undress` gives it its old class back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache as memoise
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from loquela.errors import UsageError
from loquela.peft.base import Adapter, Part

if TYPE_CHECKING:
    from loquela.models.base import Network

__all__ = ["Dressed", "Inserted", "Names", "Wardrobe", "Worn", "dress", "undress", "wardrobe_of", "worn_by"]

Names: TypeAlias = "str | Sequence[str | None] | None"
"""What is worn: nothing, one adapter by all rows, or one adapter (or None) by each row of the batch."""


@dataclass(frozen=True)
class Worn:
    """What is worn while a forward pass runs."""

    names: str | tuple[str | None, ...]
    groups: tuple[tuple[str, Tensor], ...]
    """Each adapter with the rows (n,) that wear it; empty when one adapter is worn by all."""
    rows: int | None = None
    """How many rows a batch must have; None when one name was given for any number."""

    def each(self) -> tuple[str | None, ...]:
        """The adapter of each row, or the one of all rows."""
        return (self.names,) if isinstance(self.names, str) else self.names

    def one(self) -> str | None:
        """The adapter that all rows wear; None where they differ."""
        return self.names if isinstance(self.names, str) else None


@dataclass(frozen=True)
class Inserted:
    """Vectors that stand in the first positions of what a token embedding gives."""

    place: nn.Module
    vectors: Tensor
    """(rows or 1, positions, dim)."""

    def into(self, x: Tensor) -> Tensor:
        """Replace the first positions of `x` (rows, seq, dim)."""
        length = self.vectors.shape[1]
        return torch.cat((self.vectors.to(x.dtype).expand(len(x), -1, -1), x[:, length:]), dim=1)


@dataclass
class Wardrobe:
    """The adapters of one network, and what is worn of them."""

    adapters: dict[str, Adapter] = field(default_factory=dict)
    worn: Worn | None = None
    inserted: Inserted | None = None
    """Set while a network reads vectors in place of the first tokens."""
    merged: dict[str, dict[str, dict[str, Tensor]]] = field(default_factory=dict)
    """What merged adapters replaced: adapter → layer → tensor, as it was."""
    lock: Any = field(default_factory=threading.RLock, repr=False)
    """Held while something is worn, so that threads take turns instead of changing each other's clothes."""

    def __getstate__(self) -> dict[str, Any]:
        return {"adapters": self.adapters, "worn": None, "merged": self.merged}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, lock=threading.RLock())


class Dressed:
    """The mixin that lets a layer wear adapters; its class is mixed into the layer's own."""

    wardrobe: Wardrobe
    parts: dict[str, Part]
    whole: bool
    """Whether the layer's input does not begin with the rows of the batch, so that all rows must wear the same."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the layer, with what is worn."""
        y = self._forward(x, *args, **kwargs)
        inserted: Inserted | None = self.wardrobe.inserted
        return y if inserted is None or inserted.place is not cast(Any, self) else inserted.into(y)

    def _forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        worn: Worn | None = self.wardrobe.worn
        base: Callable[..., Tensor] = super().forward  # type: ignore[misc]
        layer = cast(nn.Module, self)
        if worn is None:
            return base(x, *args, **kwargs)
        if (name := worn.one()) is not None:
            part = self.parts.get(name)
            return base(x, *args, **kwargs) if part is None else part(layer, base, x, *args, **kwargs)
        groups = [(self.parts[name], rows) for name, rows in worn.groups if name in self.parts]
        if not groups:
            return base(x, *args, **kwargs)
        if self.whole:
            raise UsageError(
                f"a {type(self).__name__} is shared by all rows of a batch, so all must wear the same adapter there: "
                "give the rows to the model one adapter at a time"
            )
        if isinstance(self, nn.Embedding) and x.dim() == 1:
            x = x.expand(len(worn.names), -1)  # positions that all rows share
        if len(x) != len(worn.names):
            raise UsageError(
                f"adapters are worn by {len(worn.names)} rows, so the input of every layer must begin with them, but "
                f"that of a {type(self).__name__} is {[*x.shape]}"
            )
        inner = x
        for part, rows in groups:
            if type(part).before is not Part.before:
                inner = inner.index_copy(0, rows, part.before(layer, x[rows]))
        y: Tensor = base(inner, *args, **kwargs)
        for part, rows in groups:
            if type(part).after is not Part.after:
                y = y.index_copy(0, rows, part.after(layer, base, x[rows], y[rows]))
        return y


@memoise
def _dressed(kind: Any, mixin: type) -> Any:
    return type(f"Dressed{kind.__name__}", (mixin, kind), {"undressed": kind, "__doc__": kind.__doc__})


def dress(layer: nn.Module, wardrobe: Wardrobe, *, mixin: type = Dressed, whole: bool = False) -> None:
    """Make `layer` an instance of a subclass of its class that looks at what is worn; nothing else of it changes."""
    if not isinstance(layer, mixin):
        layer.__class__ = _dressed(cast(Any, type(layer)), mixin)
        dressed = cast(Any, layer)
        dressed.wardrobe, dressed.parts, dressed.whole = wardrobe, {}, whole


def undress(layer: nn.Module) -> None:
    """Give a layer without parts its own class back."""
    layer.__class__ = cast(Any, type(layer)).undressed
    for name in ("wardrobe", "parts", "whole"):
        delattr(layer, name)


def wardrobe_of(network: Network) -> Wardrobe | None:
    """Return the wardrobe of a network; None for one that never had an adapter."""
    wardrobe: Wardrobe | None = vars(network).get("wardrobe")  # a module looks long for what it does not have
    return getattr(network, "wardrobe", None) if wardrobe is None and hasattr(type(network), "wardrobe") else wardrobe


def worn_by(names: str | Sequence[str | None], wardrobe: Wardrobe, device: torch.device) -> Worn | None:
    """Return what `names` mean; rows that wear the same adapter come together."""
    if isinstance(names, str):
        return Worn(names, ())
    if len(set(names)) == 1:
        return None if names[0] is None else Worn(names[0], (), len(names))
    groups = tuple(
        (name, torch.tensor([row for row, own in enumerate(names) if own == name], device=device))
        for name in wardrobe.adapters
        if name in names
    )
    return Worn(tuple(names), groups, len(names))
