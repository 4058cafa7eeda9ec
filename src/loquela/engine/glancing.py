"""What a draw wants to know of a row of logits before it looks at all of them.

The largest, which token has it, and log Σ e^(logit - largest), in float64. A row is cut into parts of `PART` logits,
whoever computes them, and the parts are joined in their order: the numbers depend on nothing but the row.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, disable-error-code="import-untyped"
from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from loquela.engine import vectors as v
from loquela.engine.cached import jit
from loquela.engine.simd import F32, I64, LANES, VI, Emit, V, define, vector_type

__all__ = ["MOST", "PART", "WORDS", "glance", "join", "largest_first"]

PART = 2048
WORDS = 4
"""Numbers of eight bytes that are known of a part, or of a row."""
MOST = 128
"""Of how many tokens `largest_first` keeps a list that it puts new ones into; for more, others are faster."""
_F64 = ir.DoubleType()
_W, _WI = ir.VectorType(_F64, LANES), ir.VectorType(I64, LANES)
_LEAST = np.float32(-np.inf)


def _exp(e: Emit, x: ir.Value) -> ir.Value:
    """eˣ of x ≤ 0 in float64: 2ⁿ · eʳ with |r| ≤ ln 2 / 2, eʳ by its series; 0 below the smallest normal number."""
    b = e.b

    def all_of(value: float) -> ir.Value:
        return ir.Constant(_W, [value] * LANES)

    def fma(x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        return e.intrinsic(f"llvm.fma.v{LANES}f64", _W, x, y, z) if e.fused else b.fadd(b.fmul(x, y), z)

    low = b.fcmp_ordered("<", x, all_of(-708.0))
    x = b.select(low, all_of(-708.0), x)
    n = fma(x, all_of(math.log2(math.e)), all_of(1.5 * 2.0**52))  # the rounded number, in the low bits
    whole = b.fsub(n, all_of(1.5 * 2.0**52))
    r = fma(whole, all_of(-6.93147180369123816490e-01), x)
    r = fma(whole, all_of(-1.90821492927058770002e-10), r)
    y = all_of(1 / math.factorial(13))
    for k in range(12, -1, -1):
        y = fma(y, r, all_of(1 / math.factorial(k)))
    bits = b.shl(b.bitcast(n, _WI), ir.Constant(_WI, [52] * LANES))
    power = b.bitcast(b.add(bits, ir.Constant(_WI, [0x3FF0000000000000] * LANES)), _W)
    return b.select(low, all_of(0.0), b.fmul(y, power))


def _least(e: Emit, x: ir.Value, y: ir.Value) -> ir.Value:
    return e.b.select(e.b.fcmp_ordered("<", x, y), x, y)


def _glance(e: Emit, src: Any, count: Any, out: Any) -> None:
    """Of `count` logits: the largest, Σ e^(logit - largest), where the first largest is, how many are no numbers."""
    b = e.b
    least, nowhere, least_sum = e.constant(-math.inf), e.constant(PART), ir.Constant(_W, [0.0] * LANES)
    top, wrong, total, place = (cgutils.alloca_once(b, kind) for kind in (V, VI, _W, V))
    b.store(least, top)
    b.store(ir.Constant(VI, None), wrong)
    b.store(least_sum, total)
    b.store(nowhere, place)

    def each(body: Any) -> None:
        """Call `body` with sixteen logits after sixteen, -inf behind the last, and where they begin."""
        whole = b.udiv(count, ir.Constant(I64, LANES))
        with cgutils.for_range(b, whole) as loop:
            at = b.mul(loop.index, ir.Constant(I64, LANES))
            body(e.load(b.add(src, b.mul(at, ir.Constant(I64, 4)))), at)
        at = b.mul(whole, ir.Constant(I64, LANES))
        left = b.sub(count, at)
        with b.if_then(b.icmp_signed("!=", left, ir.Constant(I64, 0))):
            found = e.load_first(b.add(src, b.mul(at, ir.Constant(I64, 4))), left)
            body(b.select(e.first(left), found, least), at)

    def first(x: ir.Value, at: ir.Value) -> None:
        b.store(b.select(b.fcmp_ordered(">", x, b.load(top)), x, b.load(top)), top)
        b.store(b.add(b.load(wrong), b.zext(b.fcmp_unordered("uno", x, x), VI)), wrong)

    each(first)
    largest = e.fold(b.load(top), LANES, lambda x, y: b.select(b.fcmp_ordered(">", x, y), x, y))
    all_equal = e.splat(largest)
    none = b.fcmp_ordered("==", largest, ir.Constant(largest.type, -math.inf))
    shift = e.splat(b.fpext(b.select(none, ir.Constant(largest.type, 0.0), largest), _F64))

    def then(x: ir.Value, at: ir.Value) -> None:
        lanes = b.fadd(e.splat(b.uitofp(at, F32)), ir.Constant(V, [float(lane) for lane in range(LANES)]))
        here = b.select(b.fcmp_ordered("==", x, all_equal), lanes, nowhere)
        b.store(_least(e, here, b.load(place)), place)
        b.store(b.fadd(b.load(total), _exp(e, b.fsub(b.fpext(x, _W), shift))), total)

    each(then)
    lowest = e.fold(b.load(place), LANES, lambda x, y: _least(e, x, y))
    for word, value in enumerate((
        b.fpext(largest, _F64), e.fold(b.load(total), LANES, b.fadd),
        b.fptoui(lowest, I64), b.zext(e.fold(b.load(wrong), LANES, b.add), I64),
    )):  # fmt: skip
        e.store(b.add(out, ir.Constant(I64, 8 * word)), value)


_glance_part = define("glance", types.void, (types.int64,) * 3, _glance)


def _above(e: Emit, x: ir.Value, bound: ir.Value) -> ir.Value:
    return e.b.zext(e.b.bitcast(e.b.fcmp_ordered(">", x, e.splat(bound)), ir.IntType(LANES)), I64)


_lanes_above = define("lanes_above", types.int64, (vector_type, types.float32), _above)


@jit
def glance(op, t, part):
    """See `_glance`: of a part of row `t`."""
    first = part * PART
    out = op[4] + t * op[5] + part * 8 * WORDS
    _glance_part(op[1] + t * op[2] + 4 * first, min(PART, op[3] - first), out)


@jit
def join(op, t):
    """From what is known of its parts to what is known of row `t`; the largest is NaN where any logit is."""
    parts, out = op[1] + t * op[2], op[4] + t * op[5]
    largest, best, wrong = v.get_f64(parts), v.get_i64(parts + 16), np.int64(0)
    for part in range(op[3]):
        at = parts + part * 8 * WORDS
        wrong += v.get_i64(at + 24)
        if v.get_f64(at) > largest:
            largest, best = v.get_f64(at), part * PART + v.get_i64(at + 16)
    total = 0.0
    if largest > -np.inf:
        for part in range(op[3]):
            at = parts + part * 8 * WORDS
            total += v.get_f64(at + 8) * math.exp(v.get_f64(at) - largest)
    v.set_f64(out, np.nan if wrong != 0 else largest)
    v.set_f64(out + 8, math.log(total) if total > 0 else np.nan)
    v.set_f64(out + 16, float(best))


@jit
def largest_first(src, size, ids, values):
    """Find the largest of `size` float32 at `src`, as many as there are `ids`, of equal ones those that come first.

    Puts where they are into `ids` (n,) and them into `values` (n,), largest first; returns how many are above -inf.
    """
    found, most, bound = 0, len(ids), _LEAST
    for i in range(0, size, LANES):
        left = min(LANES, size - i)
        if _lanes_above(v.load_first(src + 4 * i, left), bound) == 0:
            continue
        for lane in range(left):
            value = v.get_f32(src + 4 * (i + lane))
            if not value > bound:
                continue
            at = found if found < most else most - 1
            while at > 0 and values[at - 1] < value:
                values[at], ids[at] = values[at - 1], ids[at - 1]
                at -= 1
            values[at], ids[at] = value, i + lane
            found = min(found + 1, most)
            if found == most:
                bound = values[most - 1]
    return found
