"""A stack of blocks that look back only, and the norm at its end."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from loquela.layers.cache import Cache
from loquela.layers.masks import causal_mask
from loquela.layers.positions import Rotary

__all__ = ["Decoder"]


class Decoder(nn.Module):
    """Blocks in a row with one causal mask for all, built only where the square causal case does not do."""

    def __init__(self, layers: Iterable[nn.Module], norm: nn.Module, *, window: int | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.window = window

    def forward(
        self, x: Tensor, *, rotary: Rotary | None = None, cache: Cache | None = None, padding: Tensor | None = None
    ) -> Tensor:
        """Run `x` (batch, seq, dim), which comes after what `cache` holds; same shape.

        `padding` (batch, cached + seq) is True where a token is real.
        """
        queries = x.shape[1]
        keys = queries + (0 if cache is None else cache.length)
        windowed = self.window is not None and keys > self.window
        causal = queries == keys and padding is None and not windowed
        mask = None
        if not causal and (queries > 1 or padding is not None or windowed):
            mask = causal_mask(
                queries, keys, window=self.window if windowed else None, padding=padding, device=x.device
            )
        for index, layer in enumerate(self.layers):
            x = layer(
                x,
                rotary=rotary,
                mask=mask,
                causal=causal and queries > 1,
                cache=None if cache is None else cache.layers[index],
            )
        return self.norm(x)  # type: ignore[no-any-return]
