"""A network that wears adapters: the rows of its batches are checked, and soft prompts come before its tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from loquela.errors import UsageError
from loquela.peft.wardrobe import Wardrobe

__all__ = ["DressedNetwork"]


class DressedNetwork:
    """The mixin of a network with adapters; its class is mixed into the network's own."""

    wardrobe: Wardrobe

    def hidden(self, tokens: Tensor, **kwargs: Any) -> Tensor:
        """As the base's, with what is worn; one name per row must be worn by as many rows."""
        worn = self.wardrobe.worn
        if worn is not None and worn.rows is not None and worn.rows != len(tokens):
            raise UsageError(
                f"adapters are worn by {worn.rows} rows, so a batch must have as many, but has {len(tokens)}"
            )
        return super().hidden(tokens, **kwargs)  # type: ignore[misc, no-any-return]
