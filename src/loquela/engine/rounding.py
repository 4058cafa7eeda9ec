"""How 32 numbers become codes of 8 or 4 bits and a scale.

At 8 bits the scale is the largest magnitude over 127. At 4 bits the largest magnitude over 6, 6.2, …, 9 is tried with
either sign, since the codes reach from -8 to 7; of the best of these 32 the codes are kept and the scale replaced by
the one that fits them best (least squares, in bfloat16). On normal numbers no scale is better by a thousandth.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, disable-error-code="import-untyped"
from __future__ import annotations

import numpy as np
from llvmlite import ir

from loquela.engine import vectors as v
from loquela.engine.cached import jit
from loquela.engine.simd import LANES, VI, Emit, V, define
from loquela.engine.simd import vector_type as vec

__all__ = ["round_group", "round_rows"]

ZERO, ONE = np.float32(0), np.float32(1)
_LEAST, _STEP = 6.0, 0.2
_TINY = np.float32(1e-36)


def _narrowed(e: Emit, x: ir.Value) -> ir.Value:
    b, bits = e.b, e.b.bitcast(x, VI)

    def of(number: int) -> ir.Value:
        return ir.Constant(VI, [number] * LANES)

    odd = b.and_(b.lshr(bits, of(16)), of(1))
    return b.bitcast(b.and_(b.add(b.add(bits, of(0x7FFF)), odd), of(-0x10000)), V)


def _marked(e: Emit, x: ir.Value) -> ir.Value:
    whole = e.b.and_(e.b.bitcast(x, VI), ir.Constant(VI, [-LANES] * LANES))
    return e.b.bitcast(e.b.or_(whole, ir.Constant(VI, list(range(LANES)))), V)


_bfloat16s = define("bfloat16s", vec, (vec,), _narrowed)
"""The nearest bfloat16 of each lane."""
_numbered = define("numbered", vec, (vec,), _marked)
"""Each lane with its number in its lowest bits."""
_parts = define("parts", vec, (), lambda e: ir.Constant(V, [_LEAST + _STEP * k for k in range(LANES)]))


@jit
def _whole(x, inverse):
    """The nearest whole number, in float32."""
    magic = v.splat(np.float32(12582912.0))
    return v.sub(v.add(v.mul(x, inverse), magic), magic)


@jit
def _clamped(x, low, high):
    return v.sub(v.splat(ZERO), v.maximum(v.sub(v.splat(ZERO), v.maximum(x, v.splat(low))), v.splat(-high)))


@jit
def _code(x, inverse, low, high):
    return _clamped(_whole(x, v.splat(inverse)), low, high)


@jit
def _bfloat16(x):
    """The nearest bfloat16."""
    bits = v.float_bits(x)
    return v.bits_to_float((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16)


@jit
def _error(x, y, scale):
    low, high, inverse = np.float32(-8), np.float32(7), ONE / scale
    a = v.fma(_code(x, inverse, low, high), v.splat(-scale), x)
    b = v.fma(_code(y, inverse, low, high), v.splat(-scale), y)
    return v.sum_lanes(v.fma(a, a, v.mul(b, b)))


@jit
def _searched(src, count, largest):
    """The best of the scales that are tried, a scale in each lane."""
    scales = _bfloat16s(v.div(v.splat(largest), _parts()))
    inverse, minus = v.div(v.splat(ONE), scales), v.sub(v.splat(ZERO), scales)
    up, down = v.splat(ZERO), v.splat(ZERO)
    for i in range(count):
        x = v.splat(v.get_f32(src + 4 * i))
        whole = _whole(x, inverse)
        a = v.fma(_clamped(whole, np.float32(-8), np.float32(7)), minus, x)
        b = v.fma(_clamped(whole, np.float32(-7), np.float32(8)), minus, x)
        up, down = v.fma(a, a, up), v.fma(b, b, down)
    least_up = -v.top_lane(v.sub(v.splat(ZERO), _numbered(up)))
    least_down = -v.top_lane(v.sub(v.splat(ZERO), _numbered(down)))
    lane = v.float_bits(min(least_up, least_down)) & 15
    scale = _bfloat16(largest / np.float32(_LEAST + _STEP * lane))
    return scale if least_up <= least_down else -scale


@jit
def _scale4(src, count, x, y, largest):
    if not largest > _TINY:
        return ZERO
    best = _searched(src, count, largest)
    low, high, inverse = np.float32(-8), np.float32(7), ONE / best
    a, b = _code(x, inverse, low, high), _code(y, inverse, low, high)
    fitted = v.sum_lanes(v.fma(a, x, v.mul(b, y))) / v.sum_lanes(v.fma(a, a, v.mul(b, b)))
    fitted = _bfloat16(fitted)
    return fitted if _error(x, y, fitted) < _error(x, y, best) else best


@jit
def round_group(src, count, bits, codes):
    """Round the `count` numbers (float32) of a group to 32 codes (int8); returns the bits of their scale (bfloat16)."""
    low = np.float32(-127) if bits == 8 else np.float32(-8)
    high = np.float32(127) if bits == 8 else np.float32(7)
    x, y = v.load_first(src, min(16, count)), v.load_first(src + 64, max(0, count - 16))
    largest = v.top_lane(v.maximum(v.absolute(x), v.absolute(y)))
    best = _bfloat16(largest / np.float32(127)) if bits == 8 else _scale4(src, count, x, y, largest)
    inverse = ONE / best if best != ZERO else ZERO
    if not abs(inverse) < np.float32(3e38):
        best = inverse = ZERO
    v.quantise_lanes(_code(x, inverse, low, high), codes)
    v.quantise_lanes(_code(y, inverse, low, high), codes + 16)
    return v.float_bits(best) >> 16


@jit
def round_rows(src, rows, columns, bits, codes, scales, room):
    """Round rows of float32 to codes (rows, columns) and scales; `room` has room for 32 codes."""
    groups = (columns + 31) // 32
    for r in range(rows):
        for g in range(groups):
            count = min(32, columns - 32 * g)
            at = r * columns + 32 * g
            v.set_u16(scales + 2 * (r * groups + g), round_group(src + 4 * at, count, bits, room))
            for k in range(count):
                v.set_u8(codes + at + k, v.get_u8(room + k))
