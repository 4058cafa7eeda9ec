"""Products of bytes by the processor's own tiles (Intel's AMX): sixteen tokens times sixteen rows at once.

A sum of products of bytes is exact, and a token's groups are added in one order, so what comes out has the bits of
`tiles.packed_tile`. Such a tile is loaded from memory only, so packed ones are spread out first, as signed bytes.
"""

# mypy: allow-untyped-calls, disable-error-code="import-untyped,attr-defined"
from __future__ import annotations

import ctypes
import platform
import sys
from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from loquela.engine.simd import B64, BF16_16, F32, I8, I64, LANES, VI, Emit, V, define, features

__all__ = ["SLACK", "available", "configure", "multiply_spread", "release", "spread"]

SLACK = 1024
"""Bytes behind spread tiles that are read, though not used."""
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18
_SUMS, _X, _W = 0, 1, 2  # the tiles that are used
_i64, _none = types.int64, types.void


def _compiled() -> bool:
    return {"amx-tile", "amx-int8", "avx512bw"} <= features()


@cache
def available() -> bool:
    """Whether the processor has such tiles and the system, which has to be asked, lets this process use them."""
    if not _compiled() or sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    return int(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA)) == 0


def _define(name: str, arguments: int, body: Any) -> Any:
    """An intrinsic of addresses and numbers; on other processors there is nothing in it, and nobody calls it."""
    return define(name, _none, (_i64,) * arguments, body if _compiled() else lambda *_: None)


def _do(e: Emit, what: str, *arguments: ir.Value | int) -> None:
    given = [ir.Constant(I8, tile) if isinstance(tile, int) else tile for tile in arguments]
    e.intrinsic(f"llvm.x86.{what}", ir.VoidType(), *given)


def configure(group: int) -> Any:
    """Tell the processor the shapes of its tiles; after this only products by them, until `release`."""
    shapes = {_SUMS: (LANES, 64), _X: (LANES, group), _W: (group // 4, 64)}
    said = [1] + [0] * 63  # the palette, the bytes of a row of each tile, the rows of each
    for tile, (rows, size) in shapes.items():
        said[16 + 2 * tile], said[48 + tile] = size, rows

    def body(e: Emit) -> None:
        room = cgutils.alloca_once(e.b, ir.ArrayType(I8, 64))
        e.b.store(ir.Constant(ir.ArrayType(I8, 64), said), room)
        _do(e, "ldtilecfg", e.b.bitcast(room, I8.as_pointer()))

    return _define(f"configure_{group}", 0, body)


release = _define("release_tiles", 0, lambda e: _do(e, "tilerelease"))
"""Have the processor forget its tiles."""


def spread(bits: int) -> Any:
    """Write the codes of a packed tile as signed bytes. Arguments: the tile; its padded columns; where to."""

    def body(e: Emit, w: Any, k: Any, out: Any) -> None:
        b, low, eight = e.b, ir.Constant(B64, [15] * 64), ir.Constant(B64, [8] * 64)
        with cgutils.for_range(b, b.udiv(k, ir.Constant(I64, 32 // bits))) as loop:
            held = e.load(e.plus(w, e.times(loop.index, 64)), B64)
            to = e.plus(out, e.times(loop.index, 512 // bits))
            if bits == 8:
                e.store(to, b.xor(held, ir.Constant(B64, [-128] * 64)))
            else:
                above = b.bitcast(b.lshr(b.bitcast(held, VI), ir.Constant(VI, [4] * LANES)), B64)
                e.store(to, b.sub(b.and_(held, low), eight))
                e.store(e.plus(to, 64), b.sub(b.and_(above, low), eight))

    return _define(f"spread_{bits}", 3, body)


def multiply_spread(group: int, together: int) -> Any:
    """Spread tiles times sixteen rows of int8 activations; of their groups `together` at a time, which must divide.

    Arguments: the codes, tile after tile; where the first tile's scales are, and how many bytes later the next one's;
    how many tiles; the activations, their stride; their scales, of sixteen rows side by side; columns; address of the
    result, its stride; of the bias, its step from tile to tile; of what is added, its stride, its step.

    Sums are scaled while the next ones are made: read at once, they would have to be waited for.
    """

    def body(
        e: Emit, w: Any, scales: Any, w_s: Any, tiles: Any, x: Any, x_s: Any, x_scales: Any, k: Any, y: Any, y_s: Any,
        bias: Any, bias_step: Any, res: Any, res_s: Any, res_step: Any,
    ) -> None:  # fmt: skip
        b, size = e.b, LANES * group * together
        room = b.ptrtoint(cgutils.alloca_once(b, ir.ArrayType(I8, 2048 * together + 64)), I64)
        room = b.and_(e.plus(room, 63), ir.Constant(I64, -64))
        ahead, column, side = (cgutils.alloca_once(b, I64) for _ in range(3))
        sums = [cgutils.alloca_once(b, V) for _ in range(LANES)]
        for place, first in ((ahead, w), (column, ir.Constant(I64, 0)), (side, room)):
            b.store(first, place)

        def sum_up(place: Any) -> None:
            at, start = b.load(ahead), b.load(column)
            for j in range(together):
                _do(e, "tileloadd64", _W, e.at(e.plus(at, LANES * group * j), I8), ir.Constant(I64, 64))
                _do(e, "tileloadd64", _X, e.at(e.plus(x, start, group * j), I8), x_s)
                _do(e, "tilezero", _SUMS)
                _do(e, "tdpbssd", _SUMS, _X, _W)
                _do(e, "tilestored64", _SUMS, e.at(e.plus(place, 1024 * j), I8), ir.Constant(I64, 64))
            following = e.plus(start, group * together)
            b.store(e.plus(at, size), ahead)
            b.store(b.select(b.icmp_signed("==", following, k), ir.Constant(I64, 0), following), column)

        sum_up(room)
        with cgutils.for_range(b, tiles) as tile:
            outs = e.rows(e.plus(y, e.times(tile.index, 4 * LANES)), y_s, LANES)
            for total, out in zip(sums, outs, strict=True):
                b.store(e.constant(0.0), total)
                e.prefetch(out, write=True)
            of_tile = e.plus(scales, b.mul(tile.index, w_s))
            with cgutils.for_range(b, b.udiv(k, ir.Constant(I64, group * together))) as loop:
                place = b.load(side)
                other = b.sub(e.plus(room, room, 1024 * together), place)
                b.store(other, side)
                sum_up(other)
                for j in range(together):
                    g = e.plus(e.times(loop.index, together), j)
                    scale = e.widen(e.load(e.plus(of_tile, e.times(g, 2 * LANES)), BF16_16))
                    for token, total in enumerate(sums):
                        factor = b.fmul(scale, e.splat(e.load(e.plus(x_scales, e.times(g, 64), 4 * token), F32)))
                        acc = b.sitofp(e.load(e.plus(place, 1024 * j + 64 * token), VI), V)
                        b.store(e.fma(acc, factor, b.load(total)), total)
            added = e.load(e.plus(bias, b.mul(tile.index, bias_step)))
            olds = e.rows(e.plus(res, b.mul(tile.index, res_step)), res_s, LANES)
            for total, out, old in zip(sums, outs, olds, strict=True):
                e.store(out, b.fadd(b.fadd(b.load(total), added), e.load(old)))

    return _define(f"spread_{group}_{together}", 15, body)
