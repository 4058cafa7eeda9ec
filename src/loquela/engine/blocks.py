"""The blocks of a decoder, as operations."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from loquela.engine.buffers import Buffer
from loquela.engine.program import Program, kind_of, unknown
from loquela.layers.attention import MultiHeadAttention
from loquela.layers.block import Block, PreNormBlock, SandwichBlock
from loquela.layers.feedforward import FeedForward, GatedFeedForward

__all__ = ["block"]


def block(
    program: Program, name: str, layer: nn.Module, x: Buffer, *, turned: int, slot: int, window: int | None, bits: int
) -> None:
    """Append one layer of a decoder, called `name`: `x` is the residual stream."""
    if kind_of(layer) not in (PreNormBlock, SandwichBlock) or not isinstance(layer, Block) or layer.cross is not None:
        raise unknown(f"a block of kind {kind_of(layer).__name__}")
    attention, feedforward = cast(Any, layer.attention), cast(Any, layer.feedforward)
    if kind_of(attention) is not MultiHeadAttention:
        raise unknown(f"an attention of kind {kind_of(attention).__name__}")
    gated = kind_of(feedforward) is GatedFeedForward
    if not gated and kind_of(feedforward) is not FeedForward:
        raise unknown(f"a feed-forward of kind {kind_of(feedforward).__name__}")
    rounds = bits != 0
    normed = program.buffer("normed", x.width)
    qkv = program.buffer("qkv", sum(attention.splits))
    seen = program.buffer("seen", attention.splits[0])
    behind = isinstance(layer, SandwichBlock)
    hidden = feedforward.down_proj.in_features
    wide, narrow = program.buffer("wide", hidden * (2 if gated else 1)), program.buffer("narrow", hidden)
    projections = ("qkv_proj",) if attention.fused else ("q_proj", "k_proj", "v_proj")
    up = ("gate_proj", "up_proj") if gated else ("up_proj",)
    program.norm(layer.attention_norm, x, normed, rounds=rounds)
    program.linear({f"{name}.attention.{p}": getattr(attention, p) for p in projections}, normed, qkv, bits=bits)
    program.attention(attention, qkv, seen, turned=turned, slot=slot, window=window)
    if rounds:
        program.round(seen)
    norm = layer.after_attention_norm if behind else None
    program.back(f"{name}.attention.o_proj", attention.o_proj, seen, x, bits=bits, read=normed, norm=norm)
    program.norm(layer.feedforward_norm, x, normed, rounds=rounds)
    program.linear({f"{name}.feedforward.{p}": getattr(feedforward, p) for p in up}, normed, wide, bits=bits)
    program.activate(feedforward.activation, gated, wide, narrow, rounds)
    norm = layer.after_feedforward_norm if behind else None
    program.back(f"{name}.feedforward.down_proj", feedforward.down_proj, narrow, x, bits=bits, read=normed, norm=norm)
