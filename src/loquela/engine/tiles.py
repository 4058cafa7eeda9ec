"""The innermost loops, emitted as LLVM IR: small tiles of a matrix product, and attention over sixteen positions.

Every element of a result is summed in one order, whatever the tile's size: a tile of one token and a tile of eight give
the same bits.
"""

# mypy: allow-untyped-calls, disable-error-code="import-untyped,attr-defined"
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils

from loquela.engine.simd import B64, BF16_16, F32, I8, I16, I32, I64, LANES, VI, Emit, V, define, features

__all__ = ["TILE", "dot_tile", "fetch", "packed_tile", "scores", "values"]

TILE = LANES
"""Rows of a packed tile: one in each lane."""
_AHEAD = 2048
"""Bytes that are fetched ahead of their use: a fifth faster than what the processor foresees by itself."""
_F16_16 = ir.VectorType(ir.HalfType(), LANES)
_KINDS = {"float32": (V, 4), "bfloat16": (BF16_16, 2), "float16": (_F16_16, 2), "int8": (ir.VectorType(I8, LANES), 1)}
_i64, _none = types.int64, types.void


class Bytes:
    """How a processor multiplies bytes: `acc += Σ of 4 products` in each of sixteen lanes, exactly, by each's own way.

    Weights are unsigned, half of their range being 0. Where `signed`, they are made signed first; else the caller
    starts from minus that times the sum of the other factor. For a few `tokens` two sums are made at a time, and the
    upper four bits are left in their place: the one would wait for itself, the other is work for each weight.
    """

    def __init__(self, e: Emit, bits: int, tokens: int) -> None:
        self.e, self.b, self.bits = e, e.b, bits
        there = features()
        self.way = "vnni" if {"avx512vnni", "avx512bw"} <= there else "avx2" if "avx2" in there else "plain"
        self.signed = self.way == "avx2" and bits == 8  # its products of bytes saturate at 16 bits: |w| ≤ 127 cannot
        self.sums = 2 if tokens <= 2 else 1
        self.shifted = self.way == "avx2" or self.sums == 1  # for the same reason; or so that one sum can take both

    def dot(self, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
        """`w` is 64 bytes, four for each lane; `x` (int32) the four bytes that each of the lanes meets."""
        return getattr(self, f"_{self.way}")(acc, w, x)

    def _vnni(self, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
        kind = B64 if llvm.llvm_version_info[0] >= 22 else VI
        w, x = (self.b.bitcast(value, kind) for value in (w, self.e.splat(x)))
        return self.e.intrinsic("llvm.x86.avx512.vpdpbusd.512", VI, acc, w, x)

    def _avx2(self, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
        b, e = self.b, self.e
        bytes32, words16, ints8 = ir.VectorType(I8, 32), ir.VectorType(I16, 16), ir.VectorType(I32, 8)
        x = b.bitcast(e.splat(x, 8), bytes32)
        halves = []
        for half in range(2):
            part = self._part(w, B64, 32 * half, 32)
            factor = x
            if self.signed:
                part = b.xor(part, ir.Constant(bytes32, [-128] * 32))
                factor = e.intrinsic("llvm.x86.avx2.psign.b", bytes32, x, part)
                part = e.intrinsic("llvm.abs.v32i8", bytes32, part, ir.Constant(ir.IntType(1), 0))
            pairs = e.intrinsic("llvm.x86.avx2.pmadd.ub.sw", words16, part, factor)
            halves.append(e.intrinsic("llvm.x86.avx2.pmadd.wd", ints8, pairs, ir.Constant(words16, [1] * 16)))
        joined = b.shuffle_vector(*halves, ir.Constant(VI, list(range(16))))
        return b.add(acc, joined)

    def _plain(self, acc: ir.Value, w: ir.Value, x: ir.Value) -> ir.Value:
        b = self.b
        for byte in range(4):
            mask = ir.Constant(VI, [4 * lane + byte for lane in range(LANES)])
            part = b.zext(b.shuffle_vector(w, ir.Constant(B64, ir.Undefined), mask), VI)
            factor = b.sext(b.trunc(b.lshr(x, ir.Constant(I32, 8 * byte)), I8), I32)
            acc = b.add(acc, b.mul(part, self.e.splat(factor)))
        return acc

    def _part(self, x: ir.Value, kind: ir.VectorType, start: int, count: int) -> ir.Value:
        mask = ir.Constant(ir.VectorType(I32, count), list(range(start, start + count)))
        return self.b.shuffle_vector(x, ir.Constant(kind, ir.Undefined), mask)

    def steps(self, address: ir.Value, group: int) -> list[ir.Value]:
        """Load a group of a tile: 64 bytes for every 4 columns, or, of 4 bits each, for every 8.

        Where they are not `shifted`, the upper four bits of a byte give sixteen times as much.
        """
        b, found = self.b, []
        for step in range(group * LANES * self.bits // 8 // 64):
            loaded = self.e.load(b.add(address, ir.Constant(I64, 64 * step)), B64)
            if self.bits == 8:
                found.append(loaded)
                continue
            low, high = (ir.Constant(B64, [mask] * 64) for mask in (15, -16))
            above = b.and_(loaded, high)
            if self.shifted:
                above = b.bitcast(b.lshr(b.bitcast(above, VI), ir.Constant(VI, [4] * LANES)), B64)
            found += [b.and_(loaded, low), above]
        return found

    def joined(self, sums: Sequence[ir.Value]) -> ir.Value:
        """The sum of all steps, of what the even and the odd ones gave where these are apart."""
        if len(sums) == 1:
            return sums[0]
        low, high = sums
        if self.bits == 4 and not self.shifted:
            high = self.b.ashr(high, ir.Constant(VI, [4] * LANES))
        return self.b.add(low, high)


def packed_tile(bits: int, group: int, tokens: int) -> Any:
    """Sixteen rows of a packed matrix times `tokens` rows of int8 activations.

    Arguments: address of the tile; of the activations and their stride; columns; address of the result, its stride; of
    the bias; of what is added, its stride. All strides are in bytes. Layouts: `loquela.engine.quantize`.
    """

    def body(
        e: Emit, w: Any, x: Any, x_stride: Any, k: Any, y: Any, y_stride: Any, bias: Any, res: Any, res_s: Any
    ) -> None:
        b, multiply = e.b, Bytes(e, bits, tokens)
        size = group * LANES * bits // 8
        groups = b.udiv(k, ir.Constant(I64, group))
        scales = e.plus(w, e.times(groups, size))
        xs = e.rows(x, x_stride, tokens)
        sums = [cgutils.alloca_once(b, V) for _ in range(tokens)]
        for total in sums:
            b.store(e.constant(0.0), total)
        with cgutils.for_range(b, groups) as loop:
            g = loop.index
            for line in range(0, size, 64):
                e.prefetch(e.plus(w, e.times(g, size), _AHEAD + line))
            steps = multiply.steps(e.plus(w, e.times(g, size)), group)
            scale = e.widen(e.load(e.plus(scales, e.times(g, 2 * LANES)), BF16_16))
            for row, total in zip(xs, sums, strict=True):
                beside = e.plus(row, k, e.times(g, 4))
                accs = [ir.Constant(VI, None)] * multiply.sums
                if not multiply.signed:
                    seen = e.load(e.plus(beside, e.times(groups, 4)), I32)
                    accs[0] = e.splat(seen)
                    if bits == 8:
                        accs[0] = b.shl(accs[0], ir.Constant(VI, [4] * LANES))
                at = e.plus(row, e.times(g, group))
                for step, part in enumerate(steps):
                    which = step % multiply.sums
                    accs[which] = multiply.dot(accs[which], part, e.load(e.plus(at, 4 * step), I32))
                acc = multiply.joined(accs)
                factor = b.fmul(scale, e.splat(e.load(beside, F32)))
                b.store(e.fma(b.sitofp(acc, V), factor, b.load(total)), total)
        added = e.load(bias)
        for total, out, old in zip(sums, e.rows(y, y_stride, tokens), e.rows(res, res_s, tokens), strict=True):
            e.store(out, b.fadd(b.fadd(b.load(total), added), e.load(old)))

    return define(f"packed_{bits}_{group}_x{tokens}", _none, (_i64,) * 9, body)


def dot_tile(dtype: str, rows: int, tokens: int) -> Any:
    """`rows` (1 or 4) rows of a matrix as PyTorch keeps it times `tokens` rows of float32.

    Arguments: address of the rows, their stride; the rest as `packed_tile`. Sixteen partial sums, folded at the end.
    """
    kind, size = _KINDS[dtype]

    def body(
        e: Emit, w: Any, w_stride: Any, x: Any, x_stride: Any, k: Any, y: Any, y_s: Any, bias: Any, res: Any, res_s: Any
    ) -> None:
        b = e.b
        ws, xs = e.rows(w, w_stride, rows), e.rows(x, x_stride, tokens)
        sums = [[cgutils.alloca_once(b, V) for _ in range(rows)] for _ in range(tokens)]
        for total in (total for row in sums for total in row):
            b.store(e.constant(0.0), total)

        def accumulate(columns: Sequence[ir.Value], at: ir.Value, count: ir.Value | None) -> None:
            for row, totals in zip(xs, sums, strict=True):
                place = e.plus(row, e.times(at, 4))
                part = e.load(place) if count is None else e.load_first(place, count)
                for column, total in zip(columns, totals, strict=True):
                    b.store(e.fma(column, part, b.load(total)), total)

        whole = b.and_(k, ir.Constant(I64, -LANES))
        with cgutils.for_range(b, b.udiv(k, ir.Constant(I64, LANES))) as loop:
            at = e.times(loop.index, LANES)
            accumulate([e.widen(e.load(e.plus(row, e.times(at, size)), kind)) for row in ws], at, None)
        left = b.sub(k, whole)
        with b.if_then(b.icmp_signed("!=", left, ir.Constant(I64, 0))):
            columns = [e.widen(e.load_first(e.plus(row, e.times(whole, size)), left, kind)) for row in ws]
            accumulate(columns, whole, left)
        out_kind = F32 if rows == 1 else ir.VectorType(F32, rows)
        added = e.load(bias, out_kind)
        for totals, out, old in zip(sums, e.rows(y, y_s, tokens), e.rows(res, res_s, tokens), strict=True):
            done = [b.load(total) for total in totals]
            folded = e.fold(done[0], LANES, b.fadd) if rows == 1 else _fold4(e, done)
            e.store(out, b.fadd(b.fadd(folded, added), e.load(old, out_kind)))

    return define(f"dot_{dtype}_{rows}x{tokens}", _none, (_i64,) * 10, body)


def _fold4(e: Emit, parts: list[ir.Value]) -> ir.Value:
    """Sum the lanes of four vectors, each in the order of `Emit.fold`, into a vector of four."""

    def halves(x: ir.Value, y: ir.Value, run: int, count: int) -> ir.Value:
        """Of every `2 · run` lanes of x then y, add the second half to the first."""
        firsts = [i for i in range(0, count, 2 * run) for i in range(i, i + run)]
        low, high = (
            e.b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(firsts)), [i + shift for i in firsts]))
            for shift in (0, run)
        )
        return e.b.fadd(low, high)

    first, second = halves(parts[0], parts[1], 8, 32), halves(parts[2], parts[3], 8, 32)
    joined = halves(first, second, 4, 32)
    shorter = halves(joined, joined, 2, 16)
    return halves(shorter, shorter, 1, 8)


def _by_dtype(name: str, dtypes: Sequence[str], arguments: int, body: Callable[..., None]) -> Any:
    """An intrinsic whose first argument says for which of `dtypes` it is to do what `body` emits for each."""

    def each(e: Emit, which: Any, *given: Any) -> None:
        for number, dtype in enumerate(dtypes):
            with e.b.if_then(e.b.icmp_signed("==", which, ir.Constant(I64, number))):
                body(e, dtype, *given)

    return define(name, _none, (_i64,) * (1 + arguments), each)


def scores(dtypes: Sequence[str], rows: int, blocks: int = 1) -> Any:
    """Scores of `rows` queries with sixteen keys that lie side by side, dimension after dimension.

    Behind keys of int8 stand their sixteen scales. The same for each of `blocks` of keys, one behind the other: that
    there is something else to do while one waits for a sum. Arguments: which of `dtypes` the keys have; address of the
    queries, their stride; of the keys; head_dim; of the scores, their stride.
    """

    def body(e: Emit, dtype: str, q: Any, q_stride: Any, keys: Any, width: Any, out: Any, out_stride: Any) -> None:
        b, (kind, size) = e.b, _KINDS[dtype]
        bytes_each = e.times(width, size * LANES)
        bytes_each = e.plus(bytes_each, 4 * LANES) if size == 1 else bytes_each
        starts = [e.plus(keys, e.times(bytes_each, block)) for block in range(blocks)]
        qs = e.rows(q, q_stride, rows)
        sums = [[cgutils.alloca_once(b, V) for _ in range(blocks)] for _ in range(rows)]
        for total in (total for row in sums for total in row):
            b.store(e.constant(0.0), total)
        with cgutils.for_range(b, width) as loop:
            several = [e.widen(e.load(e.plus(at, e.times(loop.index, size * LANES)), kind)) for at in starts]
            for row, totals in zip(qs, sums, strict=True):
                query = e.splat(e.load(e.plus(row, e.times(loop.index, 4)), F32))
                for key, total in zip(several, totals, strict=True):
                    b.store(e.fma(query, key, b.load(total)), total)
        scales = [e.load(e.plus(at, e.times(width, LANES))) if size == 1 else None for at in starts]
        for totals, place in zip(sums, e.rows(out, out_stride, rows), strict=True):
            for block, (total, scale) in enumerate(zip(totals, scales, strict=True)):
                done = b.load(total) if scale is None else b.fmul(b.load(total), scale)
                e.store(e.plus(place, 4 * LANES * block), done)

    return _by_dtype(f"scores_x{rows}_{blocks}", dtypes, 6, body)


def values(dtypes: Sequence[str], rows: int) -> Any:
    """Add `count` values, weighted for each of `rows` queries, to the rows' sums.

    Behind a value of int8 stands its scale, in sixteen bytes. Arguments: which of `dtypes` the values have; address of
    the weights, their stride; of the values; their width in vectors of sixteen; `count`; of the sums, their stride.
    """
    several = 4 if rows == 1 else 2

    def body(
        e: Emit, dtype: str, p: Any, p_stride: Any, v: Any, width: Any, count: Any, out: Any, out_stride: Any
    ) -> None:
        b, (kind, size) = e.b, _KINDS[dtype]
        ps, outs = e.rows(p, p_stride, rows), e.rows(out, out_stride, rows)
        sums = [[cgutils.alloca_once(b, V) for _ in range(several)] for _ in range(rows)]
        stride = e.times(width, LANES * size)
        stride = e.plus(stride, 16) if size == 1 else stride

        def parts(first: Any, together: int) -> None:
            """So many neighbouring vectors, of every value."""
            columns = [e.times(e.plus(first, part), LANES) for part in range(together)]
            places = [[e.plus(row, e.times(column, 4)) for column in columns] for row in outs]
            for row, totals in zip(places, sums, strict=True):
                for place, total in zip(row, totals, strict=False):
                    b.store(e.load(place), total)
            with cgutils.for_range(b, count) as loop:
                at = e.plus(v, b.mul(loop.index, stride))
                found = [e.widen(e.load(e.plus(at, e.times(column, size)), kind)) for column in columns]
                if size == 1:
                    scale = e.splat(e.load(e.plus(at, e.times(width, LANES)), F32))
                    found = [b.fmul(value, scale) for value in found]
                for row, totals in zip(ps, sums, strict=True):
                    weight = e.splat(e.load(e.plus(row, e.times(loop.index, 4)), F32))
                    for value, total in zip(found, totals, strict=False):
                        b.store(e.fma(weight, value, b.load(total)), total)
            for row, totals in zip(places, sums, strict=True):
                for place, total in zip(row, totals, strict=False):
                    e.store(place, b.load(total))

        groups = b.udiv(width, ir.Constant(I64, several))
        with cgutils.for_range(b, groups) as loop:
            parts(e.times(loop.index, several), several)
        done = e.times(groups, several)
        with cgutils.for_range(b, b.sub(width, done)) as loop:
            parts(e.plus(done, loop.index), 1)

    return _by_dtype(f"values_x{rows}", dtypes, 7, body)


def _fetch(e: Emit, start: Any, size: Any) -> None:
    with cgutils.for_range(e.b, e.b.udiv(size, ir.Constant(I64, 64))) as loop:
        e.prefetch(e.plus(start, e.times(loop.index, 64)))


fetch = define("fetch", _none, (_i64, _i64), _fetch)
"""Have so many bytes from an address fetched."""
