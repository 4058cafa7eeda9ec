"""Token ids as a person gives them, checked against a network before it reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from loquela.errors import ContextWindowError, UsageError
from loquela.models.base import EncoderDecoder, Network

__all__ = ["Ids", "rows", "source_and_target", "states"]

Ids: TypeAlias = "Sequence[int] | Sequence[Sequence[int]] | Tensor"


def rows(network: Network, ids: Ids) -> Tensor:
    """Return token ids (seq,) or (batch, seq) as a tensor (batch, seq); raises `UsageError`, `ContextWindowError`."""
    try:
        tokens = torch.as_tensor(ids)
    except (TypeError, ValueError):
        raise UsageError("rows of token ids must be of one length, but are not: pass them one by one") from None
    if tokens.dim() not in (1, 2) or tokens.numel() == 0 or tokens.is_floating_point():
        raise UsageError(f"token ids must be whole numbers (seq,) or (batch, seq), not {[*tokens.shape]}")
    if tokens.shape[-1] > network.context_length:
        raise ContextWindowError(
            f"token ids must fit the context window of {network.context_length} tokens, but are {tokens.shape[-1]}"
        )
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= network.vocab_size:
        wrong = low if low < 0 else high
        raise UsageError(f"token ids must be from 0 to {network.vocab_size - 1}, but one is {wrong}")
    return tokens.reshape(-1, tokens.shape[-1]).to(next(network.parameters()).device, torch.int64)


def source_and_target(network: Network, ids: Ids, target: Ids | None) -> tuple[Tensor, dict[str, Any]]:
    """Return the tokens that a network goes through, and by name what an encoder-decoder reads before.

    `target` begins with the token that the decoder starts from, as the ids of any text begin with its first.
    """
    what = f"{network.config.model_type} is a model of kind {network.kind}, so"
    if network.kind == "encoder-decoder" and target is None:
        raise UsageError(f"{what} it needs a target beside its source: (source, target)")
    if network.kind != "encoder-decoder" and target is not None:
        raise UsageError(f"{what} it takes token ids alone: leave the target out")
    if target is None:
        return rows(network, ids), {}
    source, tokens = rows(network, ids), rows(network, target)
    if len(source) != len(tokens):
        raise UsageError(f"there must be as many targets as sources, {len(source)}, but there are {len(tokens)}")
    return tokens, {"source": source}


def states(network: Network, tokens: Tensor, *, padding: Tensor | None = None) -> Tensor:
    """Return the last hidden states (batch, seq, dim) of what a network reads, those of the encoder where it has one.

    Raises `UsageError` for an encoder-decoder whose weights are rounded: its encoder's states stay within its kernels.
    """
    if network.kind != "encoder-decoder":
        return network.hidden(tokens, padding=padding)
    if not isinstance(network, EncoderDecoder):
        raise UsageError("the states of an encoder can be had of full weights only: load the model without quantize")
    return network.encode(tokens, padding=padding)
