"""Who may look at whom: boolean tensors, True where a query may see a key."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "additive_mask",
    "causal_mask",
    "padding_mask",
    "positions_from_padding",
    "positions_from_segments",
    "real_first",
]


def causal_mask(
    queries: int,
    keys: int,
    *,
    window: int | None = None,
    padding: Tensor | None = None,
    segments: Tensor | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Return the mask of the last `queries` of `keys` positions; (queries, keys), or (batch, 1, queries, keys).

    A query sees itself and what came before it; with `window`, only the last `window` tokens, itself included.
    `padding` (batch, keys) is True where a token is real. A query always sees itself, so that no row of the
    softmax is empty; what a padded position computes is never used. With `segments` (batch, keys), the number of each
    token's document, a query sees its own document only.
    """
    query = torch.arange(keys - queries, keys, device=device)[:, None]
    key = torch.arange(keys, device=device)[None]
    mask = key <= query
    if window is not None and padding is None:
        mask &= key > query - window
    elif window is not None and padding is not None:  # padding may stand between real tokens, and is no distance
        count = padding.long().cumsum(-1)  # (batch, keys)
        mask = mask & (count[:, None, :] > count[:, keys - queries :, None] - window)
    if segments is not None:
        mask = mask & (segments[:, keys - queries :, None] == segments[:, None, :])
    if padding is not None:
        mask = mask & padding[:, None, :] | (key == query)
    return mask if mask.dim() == 2 else mask[:, None]


def positions_from_padding(padding: Tensor, queries: int) -> Tensor:
    """Return the (batch, queries) positions of the last `queries` tokens, counting real tokens only."""
    return (padding.long().cumsum(-1) - 1).clamp_min(0)[:, -queries:]


def positions_from_segments(segments: Tensor) -> Tensor:
    """Return the positions (batch, seq) that count from the beginning of each token's document; see `causal_mask`."""
    index = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return index - torch.where(begins, index, 0).cummax(1).values


def real_first(real: Tensor) -> tuple[Tensor, Tensor]:
    """Return for `real` (batch, seq) the order that moves each row's real tokens to its front, and the way back."""
    order = torch.argsort(~real, dim=1, stable=True)
    return order, torch.argsort(order, dim=1)


def padding_mask(padding: Tensor | None) -> Tensor | None:
    """Return the mask (batch, 1, 1, keys) of `padding` (batch, keys; True where a token is real), for any query."""
    return None if padding is None else padding[:, None, None, :]


def additive_mask(bias: Tensor, mask: Tensor | None) -> Tensor:
    """Join a position bias (heads, queries, keys) with a boolean mask: -inf where one may not look."""
    return bias if mask is None else torch.where(mask, bias, float("-inf"))
