"""A stack of blocks that look back only, and the norm at its end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from loquela.layers.block import Memory
from loquela.layers.cache import Cache
from loquela.layers.masks import additive_mask, causal_mask
from loquela.layers.positions import Rotary

__all__ = ["Decoder"]


class Decoder(nn.Module):
    """Blocks in a row, and a `norm` at the end where the architecture has one.

    `windows` bounds how far back each layer looks (None: all the way); one bound serves all.
    """

    def __init__(
        self,
        layers: Iterable[nn.Module],
        norm: nn.Module | None = None,
        *,
        windows: int | Sequence[int | None] | None = None,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.windows = list(windows) if isinstance(windows, Sequence) else [windows] * len(self.layers)

    def forward(
        self,
        x: Tensor,
        *,
        rotary: Rotary | Sequence[Rotary | None] | None = None,
        cache: Cache | None = None,
        padding: Tensor | None = None,
        segments: Tensor | None = None,
        bias: Tensor | None = None,
        memory: Sequence[Memory] | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """Run `x` (batch, seq, dim), which comes after what `cache` holds; same shape.

        `padding` (batch, cached + seq) is True where a token is real. `segments` (batch, cached + seq) numbers the
        document of each token, which alone it sees. `bias` (heads, seq, cached + seq) is added to
        the scores. `rotary` serves all layers, or names one per layer. `memory` is the encoder's output per layer.
        """
        keys = x.shape[1] + (0 if cache is None else cache.length)
        masks: dict[int | None, tuple[Tensor | None, bool]] = {}
        for index, layer in enumerate(self.layers):
            window = self.windows[index]
            window = window if window is not None and keys > window else None
            if window not in masks:
                masks[window] = _mask(x, keys, window, padding, segments, bias)
            mask, causal = masks[window]
            x = layer(
                x,
                rotary=rotary[index] if isinstance(rotary, Sequence) else rotary,
                mask=mask,
                causal=causal,
                cache=None if cache is None else cache.layers[index],
                memory=None if memory is None else memory[index],
                memory_mask=memory_mask,
            )
        return x if self.norm is None else self.norm(x)


def _mask(
    x: Tensor,
    keys: int,
    window: int | None,
    padding: Tensor | None,
    segments: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor | None, bool]:
    """The mask of one kind of layer, and whether the plain causal square does instead; built only where needed."""
    queries = x.shape[1]
    if padding is None and segments is None and window is None and (queries == 1 or (queries == keys and bias is None)):
        return bias, queries > 1
    mask = causal_mask(queries, keys, window=window, padding=padding, segments=segments, device=x.device)
    return (mask if bias is None else additive_mask(bias, mask)), False
