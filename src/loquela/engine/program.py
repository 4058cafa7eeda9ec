"""From a network's bricks to a list of operations; what this file does not know, it refuses by name.

An operation is a row of sixteen int64: its code, then what its kernel reads (addresses, strides in bytes, sizes). The
kernels are in `kernels`, `products` and `attending`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loquela.checkpoint.tensors import StoredTensor
from loquela.engine import crew as code
from loquela.engine.buffers import Buffer, Rounded
from loquela.engine.crew import COLUMNS
from loquela.engine.memory import Arena, address, aligned
from loquela.engine.pages import LayerPages
from loquela.engine.products import KINDS
from loquela.engine.quantize import GROUP, laid_out, together
from loquela.engine.storing import CACHE_KINDS
from loquela.errors import UsageError
from loquela.layers.attention import MultiHeadAttention
from loquela.layers.feedforward import ACTIVATIONS
from loquela.layers.norms import LayerNorm, RMSNorm

__all__ = ["ACTIVATION_CODES", "Program", "Site", "kind_of", "unknown"]

ACTIVATION_CODES: dict[Callable[[Tensor], Tensor], int] = {
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


@dataclass(frozen=True)
class Site:
    """A place that an adapter can reach: what it adds to is `width` columns of a buffer, from `column` on."""

    number: int
    group: int
    """The number of the first of the sites that are done together, side by side."""
    column: int
    width: int
    inputs: int
    """Numbers of what it reads."""
    scales: bool
    """Whether nothing else reads that, so that it can be multiplied in place."""


class Program:
    """The operations of one network, and all that they point to."""

    def __init__(self, rows: int, quantize: str | None, cache_dtype: str, stored: Mapping[str, StoredTensor]) -> None:
        self._in_files, self._work = stored, list[Callable[[], None]]()
        self.rows, self.quantize, self.kind = rows, quantize, CACHE_KINDS[cache_dtype]
        self.ops: list[tuple[list[int], tuple[int, ...], bool]] = []
        """Operations; sites; whether it is done only where an adapter reaches one of them, or only where none does."""
        self.sites: dict[str, Site] = {}
        self.layers: list[LayerPages] = []
        self.kept: list[Any] = []
        self.page_bytes = 0
        self.most_padded = 16
        self.weight_bytes = 0
        self._buffers: dict[tuple[str, int, int], Any] = {}
        self._arena = Arena()
        self._zeros = self._keep(aligned(64))

    def table(self, first: int, last: int, reached: frozenset[int] = frozenset()) -> list[list[int]]:
        """The operations from `first` to `last` as the crew reads them, where adapters reach these sites."""
        chosen = self.ops[first:last]
        return [op for op, sites, when in chosen if any(site in reached for site in sites) == when]

    def buffer(self, name: str, width: int, rows: int | None = None) -> Buffer:
        """A buffer by its name and shape; the same for all layers."""
        key = (name, width, rows or self.rows)
        if key not in self._buffers:
            self._buffers[key] = Buffer(rows or self.rows, width)
        return self._buffers[key]  # type: ignore[no-any-return]

    def rounded(self, of: Buffer) -> Rounded:
        """The int8 form of buffers of this shape; used by the next product, then free."""
        key = ("rounded", of.width, of.rows)
        if key not in self._buffers:
            self._buffers[key] = Rounded(of.rows, of.width)
        return self._buffers[key]  # type: ignore[no-any-return]

    # -- operations

    def embed(self, tokens: nn.Embedding, places: nn.Embedding | None, x: Buffer) -> None:
        """`x = tokens[id] (+ places[position])`."""
        table, kind = self._matrix(tokens.weight)
        positions, bytes_each = 0, 0
        if places is not None:
            wide = self._keep(places.weight.detach().float().contiguous())
            positions, bytes_each = address(wide), wide.shape[1] * 4
        row_bytes = table.shape[1] * table.element_size()
        self._add(code.EMBED, address(table), kind, row_bytes, x.width, x.address, x.stride, positions, bytes_each)
        for lookup, (name, module) in enumerate((("token_embedding", tokens), ("position_embedding", places)), 1):
            if module is not None:
                sites = self._sites([(name, x.width, module.num_embeddings)], scales=False)
                self._adapted(sites, x, x, lookup=lookup)

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
            code.NORM, x.address, x.stride, y.address, y.stride, x.width, self._vector(weight), self._vector(bias),
            centred, _bits(eps), int(adds), *((r.address, r.stride, GROUP, r.padded) if r else (0, 0, 0, 0)),
        )  # fmt: skip

    def linear(self, layers: dict[str, nn.Linear], x: Buffer, y: Buffer, *, bits: int) -> None:
        """`y = [layer(x) for each]`, side by side; 8 or 4 `bits`, or 0: as they are stored. Layers are by name.

        With bits, the int8 form of `x` must be there.
        """
        sites = self._sites([(name, layer.out_features, layer.in_features) for name, layer in layers.items()])
        self._scaled(sites, x, bits)
        self._product(self._stored(layers, bits), x, y)
        self._adapted(sites, x, y)

    def back(
        self, name: str, layer: nn.Linear, x: Buffer, stream: Buffer, *, bits: int, read: Buffer, norm: Any = None
    ) -> None:
        """`stream += layer(x)`, the end of the half of a block that read `read`; a `norm` stands before the addition.

        Where an adapter reaches the layer or the half, the addition comes after it.
        """
        into = self.buffer("into", stream.width)
        own = self._sites([(name, layer.out_features, layer.in_features)])
        half = self._sites([(name.rpartition(".")[0], stream.width, stream.width)], scales=False)
        self._scaled(own, x, bits)
        reached, stored = (own[0].number, half[0].number), self._stored({name: layer}, bits)
        if norm is None:
            self._product(stored, x, stream, adds=True, sites=reached)
            self._product(stored, x, into, sites=reached, when=True)
        else:
            self._product(stored, x, into)
        self._adapted(own, x, into)
        self._adapted(half, read, into)
        if norm is None:
            sum_ = code.ADD, into.address, into.stride, stream.address, stream.stride, stream.width
            self._add(*sum_, sites=reached, when=True)
        else:
            self.norm(norm, into, stream, rounds=False, adds=True)

    def fill(self, threads: int) -> None:
        """Read and round the matrices of few bits: to be called once, before the first run."""
        together(self._work, threads)
        self._work.clear()

    def _stored(self, named: Mapping[str, nn.Linear], bits: int) -> tuple[list[tuple[int, ...]], int]:
        """Matrices to be multiplied one after the other (kind, address, stride, columns, rows), and their bias."""
        layers = [*named.values()]
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
            parts = [self._in_files.get(f"{name}.weight", layer.weight) for name, layer in named.items()]
            array, tile, padded, work = laid_out(parts, bits, self._arena)
            self._work += work
            self._keep(array)
            self.weight_bytes += array.nbytes
            return [(KINDS[f"int{bits}"], address(array), tile, padded, sum(rows))], bias
        found: list[tuple[int, ...]] = []
        for layer in layers:
            weight, kind = self._matrix(layer.weight)
            self.weight_bytes += weight.numel() * weight.element_size()
            found.append((kind, address(weight), weight.shape[1] * weight.element_size(), weight.shape[1], len(weight)))
        return found, bias

    def _product(
        self,
        stored: tuple[list[tuple[int, ...]], int],
        x: Buffer,
        y: Buffer,
        *,
        adds: bool = False,
        sites: tuple[int, ...] = (),
        when: bool = False,
    ) -> None:
        start, bias = 0, stored[1]
        for kind, w, w_s, k, m in stored[0]:
            given: Any = self.rounded(x) if kind >= KINDS["int8"] else x
            out = y.address + 4 * start
            b = (bias + 4 * start, 4) if bias else (self._zeros_at, 0)
            res = (out, y.stride, 4) if adds else (self._zeros_at, 0, 0)
            op = code.MULTIPLY, kind, w, w_s, k, m, given.address, given.stride, out, y.stride, *b, *res
            self._add(*op, sites=sites, when=when)
            start += m

    # -- adapters

    def _sites(self, places: Sequence[tuple[str, int, int]], *, scales: bool = True) -> list[Site]:
        """Number places (name, width of the output, of the input) whose outputs stand side by side."""
        group, column, found = len(self.sites), 0, []
        for name, width, inputs in places:
            self.sites[name] = Site(len(self.sites), group, column, width, inputs, scales and len(places) == 1)
            found.append(self.sites[name])
            column += width
        return found

    def _scaled(self, sites: list[Site], x: Buffer, bits: int) -> None:
        if len(sites) == 1:
            r = self.rounded(x) if bits else None
            rounding = (r.address, r.stride, GROUP, r.padded) if r else (0, 0, 0, 0)
            op = code.SCALE, sites[0].number, x.address, x.stride, x.width, *rounding
            self._add(*op, sites=(sites[0].number,), when=True)

    def _adapted(self, sites: list[Site], x: Buffer, y: Buffer, *, lookup: int = 0) -> None:
        """What adapters add at `sites`, which read `x` and give `y`; `lookup` 1: the token's id, 2: its position."""
        numbers = tuple(site.number for site in sites)
        for which in (code.LOWER, code.LIFT):
            op = which, numbers[0], len(numbers), x.address, x.stride, y.address, y.stride, lookup, self._zeros_at
            self._add(*op, sites=numbers, when=True)

    def round(self, x: Buffer) -> None:
        """Make the int8 form of `x`."""
        r = self.rounded(x)
        self._add(code.QUANTISE, x.address, x.stride, r.address, r.stride, x.width, r.padded, GROUP)

    def attention(
        self, layer: MultiHeadAttention, qkv: Buffer, y: Buffer, *, turned: int, slot: int, window: int | None
    ) -> None:
        """Rotate, store, attend. `turned` dimensions of a head are rotated, by the angles in `slot`."""
        width, padded, offset = layer.head_dim, -(-layer.head_dim // 16) * 16, self.page_bytes
        pages = LayerPages(offset, layer.kv_heads, width, padded, self.kind)
        head_bytes = pages.head_bytes
        self.page_bytes += layer.kv_heads * head_bytes
        self.layers.append(pages)
        self.most_padded = max(self.most_padded, padded)
        norms = []
        for norm in (layer.q_norm, layer.k_norm):
            if norm is not None and (kind_of(norm) is not RMSNorm or norm.weight is None):
                raise unknown(f"a norm of kind {kind_of(norm).__name__} on queries and keys")
            norms.append(self._vector(norm.weight if isinstance(norm, RMSNorm) else None))
        eps = layer.q_norm.eps if isinstance(layer.q_norm, RMSNorm) else 0.0
        scale = width**-0.5 if layer.scale is None else layer.scale
        self._add(
            code.ROTATE, qkv.address, qkv.stride, layer.heads, layer.kv_heads, width, turned, _bits(scale), *norms,
            _bits(eps), offset, head_bytes, self.kind, padded, slot,
        )  # fmt: skip
        self._add(
            code.ATTEND, qkv.address, qkv.stride, layer.heads, layer.kv_heads, width, window or 0, offset, head_bytes,
            self.kind, y.address, y.stride, padded,
        )  # fmt: skip

    def activate(self, activation: Callable[[Tensor], Tensor], gated: bool, x: Buffer, y: Buffer, rounds: bool) -> None:
        """`y = activation(gate) ⊙ up` of `x = [gate, up]`, or `y = activation(x)`."""
        kind = ACTIVATION_CODES.get(activation)
        if kind is None:
            raise unknown(f"the activation {getattr(activation, '__name__', activation)}")
        r = self.rounded(y) if rounds else None
        parts = max(1, y.width // 1024)
        self._add(
            code.ACTIVATE, kind, x.address, x.stride, y.width, int(gated), y.address, y.stride,
            *((r.address, r.stride, GROUP, r.padded) if r else (0, 0, 0, 0)), parts, r.padded if r else y.width,
        )  # fmt: skip

    # -- what they point to

    def _add(self, *op: int, sites: tuple[int, ...] = (), when: bool = False) -> None:
        assert len(op) <= COLUMNS
        self.ops.append(([*op], sites, when))

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
