"""From a network's bricks to a list of operations; what this file does not know, it refuses by name.

An operation is a row of sixteen int64: its code, then what its kernel reads (addresses, strides in bytes, sizes). The
kernels are in `kernels`, `products` and `attending`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loquela.engine.crew import ACTIVATE, ATTEND, COLUMNS, EMBED, MULTIPLY, NORM, QUANTISE, ROTATE
from loquela.engine.memory import Arena, address, aligned
from loquela.engine.pages import POSITIONS
from loquela.engine.products import KINDS
from loquela.engine.quantize import GROUP, packed, quantised
from loquela.errors import UsageError
from loquela.layers.attention import MultiHeadAttention
from loquela.layers.block import Block, PreNormBlock, SandwichBlock
from loquela.layers.feedforward import ACTIVATIONS, FeedForward, GatedFeedForward
from loquela.layers.norms import LayerNorm, RMSNorm

__all__ = ["Buffer", "Program", "block", "kind_of", "unknown"]

_ACTIVATIONS: dict[Callable[[Tensor], Tensor], int] = {
    F.silu: 0,
    F.relu: 1,
    ACTIVATIONS["relu2"]: 2,
    ACTIVATIONS["gelu_new"]: 3,
    F.gelu: 4,
    F.tanh: 5,
}
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def kind_of(module: nn.Module) -> type[nn.Module]:
    """The class of a brick, without what adapters mixed into it: the engine computes what the base does."""
    return getattr(type(module), "undressed", type(module))


def unknown(what: str) -> UsageError:
    """The error for a brick that the engine does not know."""
    return UsageError(f"the compiled engine does not know {what}: use the torch engine")


@dataclass
class Buffer:
    """Rows of float32, one per token of a call."""

    rows: int
    width: int
    array: Any = field(init=False)
    stride: int = field(init=False)

    def __post_init__(self) -> None:
        self.stride = -(-self.width // 64) * 256
        self.array = aligned(self.rows * self.stride)

    @property
    def address(self) -> int:
        """Where the first row is."""
        return address(self.array)


@dataclass
class _Rounded:
    """The int8 form of a buffer: codes, scales and sums of each row; see `kernels.quantise_row`."""

    rows: int
    width: int
    padded: int = field(init=False)
    stride: int = field(init=False)
    array: Any = field(init=False)

    def __post_init__(self) -> None:
        self.padded = -(-self.width // GROUP) * GROUP
        self.stride = -(-(self.padded + self.padded // GROUP * 8) // 64) * 64
        self.array = aligned(self.rows * self.stride)

    @property
    def address(self) -> int:
        return address(self.array)


class Program:
    """The operations of one network, and all that they point to."""

    def __init__(self, rows: int, quantize: str | None, half_cache: bool) -> None:
        self.rows, self.quantize, self.half = rows, quantize, half_cache
        self.ops: list[list[int]] = []
        self.kept: list[Any] = []
        self.page_bytes = 0
        self.most_padded = 16
        self.weight_bytes = 0
        self._buffers: dict[tuple[str, int, int], Any] = {}
        self._arena = Arena()
        self._zeros = self._keep(aligned(64))

    def table(self) -> Any:
        """The operations as the crew reads them."""
        found = np.zeros((len(self.ops), COLUMNS), dtype=np.int64)
        for row, op in zip(found, self.ops, strict=True):
            row[: len(op)] = op
        return found

    def buffer(self, name: str, width: int, rows: int | None = None) -> Buffer:
        """A buffer by its name and shape; the same for all layers."""
        key = (name, width, rows or self.rows)
        if key not in self._buffers:
            self._buffers[key] = Buffer(rows or self.rows, width)
        return self._buffers[key]  # type: ignore[no-any-return]

    def rounded(self, of: Buffer) -> _Rounded:
        """The int8 form of buffers of this shape; used by the next product, then free."""
        key = ("rounded", of.width, of.rows)
        if key not in self._buffers:
            self._buffers[key] = _Rounded(of.rows, of.width)
        return self._buffers[key]  # type: ignore[no-any-return]

    # -- operations

    def embed(self, tokens: nn.Embedding, places: nn.Embedding | None, x: Buffer) -> None:
        """`x = tokens[id] (+ places[position])`."""
        table, kind = self._matrix(tokens.weight)
        position_table, position_bytes = 0, 0
        if places is not None:
            wide = self._keep(places.weight.detach().float().contiguous())
            position_table, position_bytes = address(wide), wide.shape[1] * 4
        row_bytes = table.shape[1] * table.element_size()
        self._add(EMBED, address(table), kind, row_bytes, x.width, x.address, x.stride, position_table, position_bytes)

    def norm(self, norm: Any, x: Buffer, y: Buffer, *, rounds: bool, adds: bool = False) -> None:
        """`y = norm(x)`, or `y += norm(x)`; where it `rounds`, for a product of int8 as well."""
        if kind_of(norm) is RMSNorm:
            weight, bias, eps, centred = norm.weight, None, norm.eps, 0
        elif kind_of(norm) is LayerNorm:
            weight, bias, eps, centred = norm.weight, norm.bias, norm.eps, 1
        else:
            raise unknown(f"a norm of kind {kind_of(norm).__name__}")
        r = self.rounded(y) if rounds else None
        self._add(
            NORM, x.address, x.stride, y.address, y.stride, x.width, self._vector(weight), self._vector(bias), centred,
            _bits(eps), int(adds), *((r.address, r.stride, GROUP, r.padded) if r else (0, 0, 0, 0)),
        )  # fmt: skip

    def linear(self, layers: Sequence[nn.Linear], x: Buffer, y: Buffer, *, bits: int, adds: bool = False) -> None:
        """`y = [layer(x) for each]`, side by side, or `y += layer(x)`; 8 or 4 `bits`, or 0: as they are stored.

        With bits, the int8 form of `x` must be there.
        """
        for layer in layers:
            if kind_of(layer) is not nn.Linear:
                raise unknown(f"a matrix of kind {kind_of(layer).__name__}")
        rows = [layer.out_features for layer in layers]
        bias = 0
        if any(layer.bias is not None for layer in layers):
            joined = torch.zeros(-(-sum(rows) // 16) * 16)
            for start, layer in zip(np.cumsum([0, *rows]), layers, strict=False):
                if layer.bias is not None:
                    joined[start : start + layer.out_features] = layer.bias.detach()
            bias = address(self._keep(joined))
        if bits:
            array, tile, padded = packed([quantised(layer.weight, bits) for layer in layers], self._arena)
            self._keep(array)
            self.weight_bytes += array.nbytes
            r = self.rounded(x)
            self._product(KINDS[f"int{bits}"], address(array), tile, padded, sum(rows), r, y, 0, bias, adds)
            return
        start = 0
        for layer in layers:
            weight, kind = self._matrix(layer.weight)
            self.weight_bytes += weight.numel() * weight.element_size()
            stride = weight.shape[1] * weight.element_size()
            self._product(kind, address(weight), stride, weight.shape[1], len(weight), x, y, start, bias, adds)
            start += len(weight)

    def _product(
        self, kind: int, w: int, w_s: int, k: int, m: int, x: Any, y: Buffer, start: int, bias: int, adds: bool
    ) -> None:
        out = y.address + 4 * start
        b = (bias + 4 * start, 4) if bias else (self._zeros_at, 0)
        res = (out, y.stride, 4) if adds else (self._zeros_at, 0, 0)
        self._add(MULTIPLY, kind, w, w_s, k, m, x.address, x.stride, out, y.stride, *b, *res)

    def round(self, x: Buffer) -> None:
        """Make the int8 form of `x`."""
        r = self.rounded(x)
        self._add(QUANTISE, x.address, x.stride, r.address, r.stride, x.width, r.padded, GROUP)

    def attention(
        self, layer: MultiHeadAttention, qkv: Buffer, y: Buffer, *, turned: int, slot: int, window: int | None
    ) -> None:
        """Rotate, store, attend. `turned` dimensions of a head are rotated, by the angles in `slot`."""
        width, size = layer.head_dim, 2 if self.half else 4
        padded = -(-width // 16) * 16
        head_bytes = POSITIONS * (width + padded) * size
        offset, self.page_bytes = self.page_bytes, self.page_bytes + layer.kv_heads * head_bytes
        self.most_padded = max(self.most_padded, padded)
        norms = []
        for norm in (layer.q_norm, layer.k_norm):
            if norm is not None and (kind_of(norm) is not RMSNorm or norm.weight is None):
                raise unknown(f"a norm of kind {kind_of(norm).__name__} on queries and keys")
            norms.append(self._vector(norm.weight if isinstance(norm, RMSNorm) else None))
        eps = layer.q_norm.eps if isinstance(layer.q_norm, RMSNorm) else 0.0
        scale = width**-0.5 if layer.scale is None else layer.scale
        self._add(
            ROTATE, qkv.address, qkv.stride, layer.heads, layer.kv_heads, width, turned, _bits(scale), *norms,
            _bits(eps), offset, head_bytes, int(self.half), padded, slot,
        )  # fmt: skip
        self._add(
            ATTEND, qkv.address, qkv.stride, layer.heads, layer.kv_heads, width, window or 0, offset, head_bytes,
            int(self.half), y.address, y.stride, padded,
        )  # fmt: skip

    def activate(self, activation: Callable[[Tensor], Tensor], gated: bool, x: Buffer, y: Buffer, rounds: bool) -> None:
        """`y = activation(gate) ⊙ up` of `x = [gate, up]`, or `y = activation(x)`."""
        kind = _ACTIVATIONS.get(activation)
        if kind is None:
            raise unknown(f"the activation {getattr(activation, '__name__', activation)}")
        r = self.rounded(y) if rounds else None
        parts = max(1, y.width // 1024)
        self._add(
            ACTIVATE, kind, x.address, x.stride, y.width, int(gated), y.address, y.stride,
            *((r.address, r.stride, GROUP, r.padded) if r else (0, 0, 0, 0)), parts, r.padded if r else y.width,
        )  # fmt: skip

    # -- what they point to

    def _add(self, *op: int) -> None:
        assert len(op) <= COLUMNS
        self.ops.append(list(op))

    def _keep(self, thing: Any) -> Any:
        self.kept.append(thing)
        return thing

    @property
    def _zeros_at(self) -> int:
        return address(self._zeros)

    def _vector(self, values: Tensor | None) -> int:
        return 0 if values is None else address(self._keep(values.detach().float().contiguous()))

    def _matrix(self, weight: Tensor) -> tuple[Tensor, int]:
        if weight.dtype not in _DTYPES or weight.device.type != "cpu":
            raise unknown(f"weights of {weight.dtype} on {weight.device}")
        return self._keep(weight.detach().contiguous()), KINDS[_DTYPES[weight.dtype]]


def _bits(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


def block(
    program: Program, layer: nn.Module, x: Buffer, *, turned: int, slot: int, window: int | None, bits: int
) -> None:
    """Append one layer of a decoder: `x` is the residual stream."""
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
    projections = [attention.qkv_proj] if attention.fused else [attention.q_proj, attention.k_proj, attention.v_proj]
    into = program.buffer("into", x.width) if isinstance(layer, SandwichBlock) else x
    hidden = feedforward.down_proj.in_features
    wide, narrow = program.buffer("wide", hidden * (2 if gated else 1)), program.buffer("narrow", hidden)
    program.norm(layer.attention_norm, x, normed, rounds=rounds)
    program.linear(projections, normed, qkv, bits=bits)
    program.attention(attention, qkv, seen, turned=turned, slot=slot, window=window)
    if rounds:
        program.round(seen)
    program.linear([attention.o_proj], seen, into, bits=bits, adds=into is x)
    if isinstance(layer, SandwichBlock):
        program.norm(layer.after_attention_norm, into, x, rounds=False, adds=True)
    program.norm(layer.feedforward_norm, x, normed, rounds=rounds)
    up = [feedforward.gate_proj, feedforward.up_proj] if gated else [feedforward.up_proj]
    program.linear(up, normed, wide, bits=bits)
    program.activate(feedforward.activation, gated, wide, narrow, rounds)
    program.linear([feedforward.down_proj], narrow, into, bits=bits, adds=into is x)
    if isinstance(layer, SandwichBlock):
        program.norm(layer.after_feedforward_norm, into, x, rounds=False, adds=True)
