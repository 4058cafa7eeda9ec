"""An adapter that the compiled engine does not know."""

from __future__ import annotations

from loquela.models.base import Network
from loquela.peft.wardrobe import wardrobe_of

__all__ = ["estrange"]


def estrange(network: Network, name: str) -> None:
    """Make an adapter's parts of kinds that nobody knows; they compute what they did."""
    wardrobe = wardrobe_of(network)
    assert wardrobe is not None
    for part in wardrobe.adapters[name].parts.values():
        part.__class__ = type(f"Strange{type(part).__name__}", (type(part),), {})
