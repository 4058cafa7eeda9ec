"""The blocks of a decoder or an encoder, as operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from loquela.engine.bricks import kind_of, unknown
from loquela.engine.buffers import Buffer
from loquela.engine.heads import Sight, attend_to_memory, attend_to_text, check_attention
from loquela.engine.mixtures import mixture
from loquela.engine.program import Program
from loquela.layers.attention import MultiHeadAttention
from loquela.layers.block import Block, PostNormBlock, PreNormBlock, SandwichBlock
from loquela.layers.experts import MixtureOfExperts
from loquela.layers.feedforward import FeedForward, GatedFeedForward
from loquela.models.phi3 import FusedFeedForward

__all__ = ["block"]


def block(program: Program, name: str, layer: nn.Module, x: Buffer, sight: Sight) -> int:
    """Append one layer, called `name`: `x` is the residual stream.

    Returns after how many operations of the program the keys and values of the layer's own text are stored.
    """
    if kind_of(layer) not in (PreNormBlock, PostNormBlock, SandwichBlock) or not isinstance(layer, Block):
        raise unknown(f"a block of kind {kind_of(layer).__name__}")
    check_attention(layer.attention)
    stored = _attention(program, name, layer, x, sight)
    if layer.cross is not None:
        _cross(program, name, layer, x)
    _feedforward(program, name, layer, x)
    return stored


def _read(program: Program, layer: Block, norm: nn.Module | None, x: Buffer) -> Buffer:
    """What a half of a block reads of the stream; rounded where products need that."""
    if isinstance(layer, PostNormBlock) or kind_of(cast(nn.Module, norm)) is nn.Identity:
        if program.bits:
            program.round(x)
        return x
    normed = program.buffer("normed", x.width)
    program.norm(norm, x, normed, rounds=program.bits != 0)
    return normed


def _behind(program: Program, layer: Block, norm: nn.Module | None, x: Buffer) -> None:
    """What comes after a half was added to the stream."""
    if isinstance(layer, PostNormBlock):
        program.norm(norm, x, x)


def _attention(program: Program, name: str, layer: Block, x: Buffer, sight: Sight) -> int:
    attention, bits = cast(MultiHeadAttention, layer.attention), program.bits
    read = _read(program, layer, layer.attention_norm, x)
    qkv, seen = program.buffer("qkv", sum(attention.splits)), program.buffer("seen", attention.splits[0])
    projections = ("qkv_proj",) if attention.fused else ("q_proj", "k_proj", "v_proj")
    matrices = {f"{name}.attention.{p}": getattr(attention, p) for p in projections}
    program.linear(matrices, read, qkv, bits=bits, own=read is not x)
    stored = attend_to_text(program, attention, qkv, seen, sight)
    if bits:
        program.round(seen)
    after = layer.after_attention_norm if isinstance(layer, SandwichBlock) else None
    program.back(f"{name}.attention.o_proj", attention.o_proj, seen, x, bits=bits, read=read, norm=after)
    _behind(program, layer, layer.attention_norm, x)
    return stored


def _cross(program: Program, name: str, layer: Block, x: Buffer) -> None:
    cross, bits = layer.cross, program.bits
    assert cross is not None
    read = _read(program, layer, layer.cross_norm, x)
    q, seen = (program.buffer(which, cross.splits[0]) for which in ("q", "seen"))
    program.linear({f"{name}.cross.q_proj": cross.q_proj}, read, q, bits=bits, own=read is not x)
    attend_to_memory(program, cross, q, seen)
    if bits:
        program.round(seen)
    program.back(f"{name}.cross.o_proj", cross.o_proj, seen, x, bits=bits, read=read)
    _behind(program, layer, layer.cross_norm, x)


def _feedforward(program: Program, name: str, layer: Block, x: Buffer) -> None:
    part, half = cast(Any, layer.feedforward), f"{name}.feedforward"
    read = _read(program, layer, layer.feedforward_norm, x)
    after = layer.after_feedforward_norm if isinstance(layer, SandwichBlock) else None
    if isinstance(part, MixtureOfExperts):
        into = mixture(program, half, part, read, wide)
        program.join(half, into, x, read=read, norm=after)
    else:
        narrow = wide(program, half, part, read, own=read is not x)
        program.back(f"{half}.down_proj", part.down_proj, narrow, x, bits=program.bits, read=read, norm=after)
    _behind(program, layer, layer.feedforward_norm, x)


def wide(program: Program, name: str, part: Any, read: Buffer, *, own: bool) -> Buffer:
    """Append a feed-forward up to where it is narrowed again; returns what `down_proj` reads."""
    kind = kind_of(part)
    ways: dict[type[nn.Module], tuple[str, ...]] = {
        GatedFeedForward: ("gate_proj", "up_proj"),
        FusedFeedForward: ("gate_up_proj",),
        FeedForward: ("up_proj",),
    }
    if kind not in ways:
        raise unknown(f"a feed-forward of kind {kind.__name__}")
    activation: Callable[[Tensor], Tensor] = part.activation
    gated, hidden = kind is not FeedForward, part.down_proj.in_features
    whole, narrow = program.buffer("wide", hidden * (2 if gated else 1)), program.buffer("narrow", hidden)
    matrices = {f"{name}.{matrix}": getattr(part, matrix) for matrix in ways[kind]}
    program.linear(matrices, read, whole, bits=program.bits, own=own)
    program.activate(activation, gated, whole, narrow, rounds=program.bits != 0)
    return narrow
