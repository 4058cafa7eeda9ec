"""From a network's bricks to a list of operations; what this file does not know, it refuses by name.

An operation is a row of sixteen int64: its code, then what its kernel reads (addresses, strides in bytes, sizes). The
kernels are in `kernels`, `products` and `attending`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from loquela.checkpoint.tensors import StoredTensor
from loquela.engine import board as code
from loquela.engine.board import COLUMNS
from loquela.engine.bricks import ACTIVATION_CODES, Site, bits_of_float, kind_of, norm_weight, unknown
from loquela.engine.buffers import Buffer, Columns, Rounded
from loquela.engine.memory import address, aligned
from loquela.engine.pages import Layout
from loquela.engine.products import KINDS
from loquela.engine.quantize import GROUP
from loquela.engine.storing import CACHE_KINDS
from loquela.engine.weights import Weights
from loquela.layers.norms import LayerNorm

__all__ = ["Program"]


class Program(Weights):
    """The operations of one network, and all that they point to; `like` says of which it shares weights and buffers."""

    def __init__(
        self,
        rows: int,
        quantize: str | None,
        cache_dtype: str,
        stored: Mapping[str, StoredTensor],
        like: Program | None = None,
        replaced: Collection[str] = (),
    ) -> None:
        super().__init__(quantize, stored, like, replaced)
        self.rows, self.cache_dtype = rows, cache_dtype
        self.pages, self.memory = Layout(CACHE_KINDS[cache_dtype]), Layout(CACHE_KINDS[cache_dtype])
        self.source = Layout(CACHE_KINDS["float32"], share=True)
        """Pages of a text's own keys and values; of those of an encoder's output; of a source while it is read."""
        self.ops: list[tuple[list[int], tuple[int, ...], bool]] = []
        """Operations; sites; whether it is done only where an adapter reaches one of them, or only where none does."""
        self.sites: dict[str, Site] = {}
        self.most_padded, self.most_rows = 16, rows
        """The widest head of attention; the most rows of an operation."""
        self._buffers: dict[tuple[str, int, int], Any] = {} if like is None else like._buffers
        self._zeros = self.keep(aligned(64))

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

    def array(self, name: str, size: int) -> Any:
        """Bytes by their name and size; the same for all layers."""
        key = (name, size, 0)
        if key not in self._buffers:
            self._buffers[key] = aligned(size)
        return self._buffers[key]

    # -- operations

    def embed(
        self, name: str, tokens: nn.Embedding, x: Buffer, *, scale: float = 1.0, places: Tensor | None = None,
        places_name: str | None = None,
    ) -> None:  # fmt: skip
        """`x = scale · tokens[id] (+ places[position])`; adapters reach tokens and places by their names."""
        table, kind = self.table_of(name, tokens.weight)
        wide = None if places is None else self.keep(places.detach().float().contiguous())
        positions, bytes_each = (0, 0) if wide is None else (address(wide), wide.shape[1] * 4)
        at_once = (positions, bytes_each) if scale == 1.0 else (0, 0)
        row_bytes = table.shape[1] * table.element_size()
        self.add(code.EMBED, address(table), kind, row_bytes, x.width, x.address, x.stride, *at_once)
        self._looked_up(name, tokens.num_embeddings, x, 1)
        if scale != 1.0:  # what adapters add to an embedding is scaled too
            self.add(code.PLACE, x.address, x.stride, x.width, bits_of_float(scale), positions, bytes_each)
        if wide is not None and places_name is not None:
            self._looked_up(places_name, len(wide), x, 2)

    def _looked_up(self, name: str, count: int, x: Buffer, lookup: int) -> None:
        self._adapted(self.place_sites([(name, x.width, count)], scales=False), x, x, lookup=lookup)

    def scale(self, x: Buffer, factor: float) -> None:
        """`x = factor · x`."""
        if factor != 1.0:
            self.add(code.PLACE, x.address, x.stride, x.width, bits_of_float(factor), 0, 0)

    def norm(
        self, norm: Any, x: Buffer | Columns, y: Buffer | Columns, *, rounds: bool = False, adds: bool = False
    ) -> None:
        """`y = norm(x)`, or `y += norm(x)`; where it `rounds`, for a product of int8 as well."""
        if kind_of(norm) is LayerNorm:
            weight, bias, centred = norm.weight, norm.bias, 1
        else:
            weight, bias, centred = norm_weight(norm), None, 0
        self.add(
            code.NORM, x.address, x.stride, y.address, y.stride, x.width, self.vector(weight), self.vector(bias),
            centred, bits_of_float(norm.eps), int(adds), *self.rounding(y, rounds),
        )  # fmt: skip

    def rounding(self, y: Any, rounds: bool) -> tuple[int, int, int, int]:
        """Where the int8 form of `y` goes, its stride, groups and padded width; zeros where it is not needed."""
        r = self.rounded(y) if rounds else None
        return (0, 0, 0, 0) if r is None else (r.address, r.stride, GROUP, r.padded)

    def linear(
        self, layers: dict[str, nn.Linear], x: Buffer, y: Buffer, *, bits: int, own: bool = True,
        stored: tuple[list[tuple[int, ...]], int] | None = None,
    ) -> None:  # fmt: skip
        """`y = [layer(x) for each]`, side by side; 8 or 4 `bits`, or 0: as they are stored. Layers are by name.

        With bits, the int8 form of `x` must be there. `own` says that nothing else reads `x`. `stored` is what `stored`
        gave for them, where that was asked before.
        """
        places = [(name, layer.out_features, layer.in_features) for name, layer in layers.items()]
        sites = self.place_sites(places, scales=own)
        self._scaled(sites, x, bits)
        self._product(self.stored(layers, bits) if stored is None else stored, x, y)
        self._adapted(sites, x, y)

    def back(
        self, name: str, layer: nn.Linear, x: Buffer, stream: Buffer, *, bits: int, read: Buffer, norm: Any = None
    ) -> None:
        """`stream += layer(x)`, the end of the half of a block that read `read`; a `norm` stands before the addition.

        Where an adapter reaches the layer or the half, the addition comes after it.
        """
        into = self.buffer("into", stream.width)
        own = self.place_sites([(name, layer.out_features, layer.in_features)])
        half = self._half(name.rpartition(".")[0], stream.width)
        self._scaled(own, x, bits)
        reached, stored = (own[0].number, half[0].number), self.stored({name: layer}, bits)
        if norm is None:
            self._product(stored, x, stream, adds=True, sites=reached)
            self._product(stored, x, into, sites=reached, when=True)
        else:
            self._product(stored, x, into)
        self._adapted(own, x, into)
        self._adapted(half, read, into)
        if norm is None:
            self._sum(into, stream, sites=reached, when=True)
        else:
            self.norm(norm, into, stream, adds=True)

    def join(self, half: str, into: Buffer, stream: Buffer, *, read: Buffer, norm: Any = None) -> None:
        """`stream += into`, what the `half` of a block made of `read`; see `back`."""
        self._adapted(self._half(half, stream.width), read, into)
        if norm is None:
            self._sum(into, stream)
        else:
            self.norm(norm, into, stream, adds=True)

    def _half(self, name: str, width: int) -> list[Site]:
        return self.place_sites([(name, width, width)], scales=False)

    def _sum(self, x: Buffer, stream: Buffer, *, sites: tuple[int, ...] = (), when: bool = False) -> None:
        self.add(code.ADD, x.address, x.stride, stream.address, stream.stride, stream.width, sites=sites, when=when)

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
        bias = stored[1]
        for kind, w, w_s, k, m, start in stored[0]:
            given: Any = self.rounded(x) if kind >= KINDS["int8"] else x
            out = y.address + 4 * start
            b = (bias + 4 * start, 4) if bias else (self.zeros, 0)
            res = (out, y.stride, 4) if adds else (self.zeros, 0, 0)
            op = code.MULTIPLY, kind, w, w_s, k, m, given.address, given.stride, out, y.stride, *b, *res
            self.add(*op, sites=sites, when=when)

    # -- adapters

    def place_sites(self, places: Sequence[tuple[str, int, int]], *, scales: bool = True) -> list[Site]:
        """Number places (name, width of the output, of the input) whose outputs stand side by side."""
        if len(places) == 1 and places[0][0] in self.sites:  # one embedding for source and target
            return [self.sites[places[0][0]]]
        group, column, found = len(self.sites), 0, []
        for name, width, inputs in places:
            self.sites[name] = Site(len(self.sites), group, column, width, inputs, scales and len(places) == 1)
            found.append(self.sites[name])
            column += width
        return found

    def _scaled(self, sites: list[Site], x: Buffer, bits: int) -> None:
        if len(sites) == 1:
            op = code.SCALE, sites[0].number, x.address, x.stride, x.width, *self.rounding(x, bits != 0)
            self.add(*op, sites=(sites[0].number,), when=True)

    def _adapted(self, sites: list[Site], x: Buffer, y: Buffer, *, lookup: int = 0) -> None:
        """What adapters add at `sites`, which read `x` and give `y`; `lookup` 1: the token's id, 2: its position."""
        numbers = tuple(site.number for site in sites)
        for which in (code.LOWER, code.LIFT):
            op = which, numbers[0], len(numbers), x.address, x.stride, y.address, y.stride, lookup, self.zeros
            self.add(*op, sites=numbers, when=True)

    def round(self, x: Buffer) -> None:
        """Make the int8 form of `x`."""
        r = self.rounded(x)
        self.add(code.QUANTISE, x.address, x.stride, r.address, r.stride, x.width, r.padded, GROUP)

    def activate(
        self, activation: Callable[[Tensor], Tensor], gated: bool, x: Buffer, y: Buffer, *, rounds: bool,
        cap: float = 0.0, slots: int = 1,
    ) -> None:  # fmt: skip
        """`y = activation(gate) ⊙ up` of `x = [gate, up]`, or `y = activation(x)`; of so many `slots` of each token.

        With a `cap` it is `cap · activation(x / cap)`.
        """
        kind = ACTIVATION_CODES.get(activation)
        if kind is None:
            raise unknown(f"the activation {getattr(activation, '__name__', activation)}")
        r = self.rounding(y, rounds)
        parts = max(1, y.width // 1024)
        self.add(
            code.ACTIVATE, kind, x.address, x.stride, y.width, int(gated), y.address, y.stride,
            *r, parts, r[3] or y.width, bits_of_float(cap), slots,
        )  # fmt: skip

    # -- what they point to

    def add(self, *op: int, sites: tuple[int, ...] = (), when: bool = False) -> None:
        """Append an operation; see `ops`."""
        assert len(op) <= COLUMNS
        self.ops.append(([*op], sites, when))

    @property
    def zeros(self) -> int:
        """Where sixteen zeros are."""
        return address(self._zeros)
