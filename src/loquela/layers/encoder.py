"""A stack of blocks that look both ways."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from loquela.layers.masks import additive_mask, padding_mask

__all__ = ["Encoder"]


class Encoder(nn.Module):
    """Blocks in a row, each seeing the whole text; `norm` at the end where the architecture has one."""

    def __init__(self, layers: Iterable[nn.Module], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(self, x: Tensor, *, padding: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Run `x` (batch, seq, dim); same shape.

        `padding` (batch, seq) is True where a token is real; `bias` (heads, seq, seq) is added to the scores.
        """
        mask = padding_mask(padding)
        if bias is not None:
            mask = additive_mask(bias, mask)
        for layer in self.layers:
            x = layer(x, mask=mask)
        return x if self.norm is None else self.norm(x)
