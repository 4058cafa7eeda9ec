"""What a decoder does with a row: norms, rotations, activations, int8 rounding. Everything is named by address.

An operation is a row of int64 numbers, `op`; what each column means stands in `loquela.engine.program`. `t` is the
number of a token among those of this call.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

import numpy as np

from loquela.engine import vectors as v
from loquela.engine.cached import jit
from loquela.engine.storing import store

__all__ = ["activate", "activation", "embed", "normalise", "place", "quantise_row", "rotate_and_store"]

ZERO, ONE, TWO, HALF = np.float32(0), np.float32(1), np.float32(2), np.float32(0.5)
LEAST = np.float32(-np.inf)


@jit
def quantise_row(src, dst, width, padded, group, first, last):
    """Round the groups from column `first` to `last` of `width` float32 to int8.

    Behind all `padded` columns stand each group's scale, then minus eight times each group's sum: what unsigned weights
    give too much at 4 bits, and a sixteenth of it at 8.
    """
    scales = dst + padded
    sums = scales + padded // group * 4
    for start in range(first, last, group):
        top = v.splat(ZERO)
        for i in range(start, start + group, 16):
            top = v.maximum(v.absolute(v.load_first(src + 4 * i, min(16, max(0, width - i)))), top)
        largest = v.top_lane(top)
        inverse = np.float32(127) / largest if largest > ZERO else ZERO
        if inverse > np.float32(3e38):  # a group of denormal numbers
            inverse = ZERO
        total = np.int64(0)
        for i in range(start, start + group, 16):
            x = v.mul(v.load_first(src + 4 * i, min(16, max(0, width - i))), v.splat(inverse))
            total += v.quantise_lanes(x, dst + i)
        v.set_f32(scales + start // group * 4, largest / np.float32(127))
        v.set_i32(sums + start // group * 4, -8 * total)


@jit
def embed(op, t, token, position, given):
    """Copy a token's vector, or the one at the address `given`, and add its position's where there is one."""
    table, kind, row_bytes, dim, dst, stride, places, place_bytes = (
        op[1],
        op[2],
        op[3],
        op[4],
        op[5],
        op[6],
        op[7],
        op[8],
    )
    src, out = table + token * row_bytes, dst + t * stride
    for i in range(dim):
        if given != 0:
            x = v.get_f32(given + 4 * i)
        elif kind == 0:
            x = v.get_f32(src + 4 * i)
        elif kind == 1:
            x = v.bits_to_float(v.get_u16(src + 2 * i) << 16)
        else:
            x = v.get_f16(src + 2 * i)
        if places != 0:
            x += v.get_f32(places + position * place_bytes + 4 * i)
        v.set_f32(out + 4 * i, x)


@jit
def place(op, t, position):
    """`x = scale · x + places[position]`, where there are places."""
    row, width, scale, places = op[1] + t * op[2], op[3], v.splat(v.bits_to_float(op[4])), op[5]
    for i in range(0, width, 16):
        count = min(16, width - i)
        x = v.mul(v.load_first(row + 4 * i, count), scale)
        if places != 0:
            x = v.add(x, v.load_first(places + position * op[6] + 4 * i, count))
        v.store_first(row + 4 * i, x, count)


@jit
def sum_of_squares(src, width, mean):
    """Σ (x - mean)² over `width` numbers."""
    total, shift = v.splat(ZERO), v.splat(mean)
    for i in range(0, width - width % 16, 16):
        x = v.sub(v.load(src + 4 * i), shift)
        total = v.fma(x, x, total)
    result = v.sum_lanes(total)
    for i in range(width - width % 16, width):
        x = v.get_f32(src + 4 * i) - mean
        result += x * x
    return result


@jit
def normalise(op, t):
    """RMSNorm or LayerNorm of a row, written, added to what stands there, or rounded to int8 as well."""
    src, dst, dim = op[1] + t * op[2], op[3] + t * op[4], op[5]
    weight, bias, centred, eps, adds = op[6], op[7], op[8], v.bits_to_float(op[9]), op[10]
    mean = ZERO
    if centred != 0:
        total = v.splat(ZERO)
        for i in range(0, dim, 16):
            total = v.add(total, v.load_first(src + 4 * i, min(16, dim - i)))
        mean = v.sum_lanes(total) / np.float32(dim)
    inverse = v.splat(ONE / np.sqrt(sum_of_squares(src, dim, mean) / np.float32(dim) + eps))
    shift = v.splat(mean)
    for i in range(0, dim, 16):
        count = min(16, dim - i)
        y = v.mul(v.sub(v.load_first(src + 4 * i, count), shift), inverse)
        if weight != 0:
            y = v.mul(y, v.load_first(weight + 4 * i, count))
        if bias != 0:
            y = v.add(y, v.load_first(bias + 4 * i, count))
        if adds != 0:
            y = v.add(y, v.load_first(dst + 4 * i, count))
        v.store_first(dst + 4 * i, y, count)
    if op[13] != 0:
        quantise_row(dst, op[11] + t * op[12], dim, op[14], op[13], 0, op[14])


@jit
def _head_norm(place, width, weight, eps):
    inverse = v.splat(ONE / np.sqrt(sum_of_squares(place, width, ZERO) / np.float32(width) + eps))
    for i in range(0, width, 16):
        count = min(16, width - i)
        y = v.mul(v.mul(v.load_first(place + 4 * i, count), inverse), v.load_first(weight + 4 * i, count))
        v.store_first(place + 4 * i, y, count)


@jit
def _turn(place, width, table, factor):
    """Rotate pairs (i, i + width/2) by the angles whose cosines, then sines, stand at `table`; all times `factor`."""
    half = width // 2
    scale = v.splat(factor)
    for i in range(0, half, 16):
        count = min(16, half - i)
        x, y = v.load_first(place + 4 * i, count), v.load_first(place + 4 * (half + i), count)
        cos, sin = v.load_first(table + 4 * i, count), v.load_first(table + 4 * (half + i), count)
        v.store_first(place + 4 * i, v.mul(v.sub(v.mul(x, cos), v.mul(y, sin)), scale), count)
        v.store_first(place + 4 * (half + i), v.mul(v.fma(x, sin, v.mul(y, cos)), scale), count)


@jit
def _times(place, start, end, factor):
    for i in range(start, end):
        v.set_f32(place + 4 * i, v.get_f32(place + 4 * i) * factor)


@jit
def rotate_and_store(op, first, last, positions, page_tables, angles):
    """Normalise and rotate the queries and keys of tokens from `first` to `last`; put keys and values into pages.

    Head after head: neighbouring tokens' keys are stored side by side.
    """
    row_bytes, heads, kv_heads, width = op[2], op[3], op[4], op[5]
    turned, scale, q_norm, k_norm, eps = op[6], v.bits_to_float(op[7]), op[8], op[9], v.bits_to_float(op[10])
    offset, head_bytes, kind, padded = op[11], op[12], op[13], op[14]
    for head in range(heads + kv_heads):
        is_query = head < heads
        norm = q_norm if is_query else k_norm
        factor = scale if is_query else ONE
        for t in range(first, last):
            position = v.get_i64(positions + 8 * t)
            place = op[1] + t * row_bytes + head * width * 4
            if norm != 0:
                _head_norm(place, width, norm, eps)
            if turned > 0:
                table = v.get_i64(angles + 8 * (position // 1024)) + position % 1024 * turned * 4
                _turn(place, turned, table, factor)
            if factor != ONE:
                _times(place, turned, width, factor)
            if not is_query:
                page = v.get_i64(v.get_i64(page_tables + 8 * t) + 8 * (position // 32)) + offset
                inside = page + (head - heads) * head_bytes
                store(kind, inside, position % 32, width, padded, place, place + kv_heads * width * 4)


@jit
def _tanh(x):
    """1 - 2 / (e²ˣ + 1)."""
    one = v.splat(ONE)
    return v.sub(one, v.div(v.splat(TWO), v.add(v.exp(v.add(x, x)), one)))


@jit
def _erf(x):
    """The error function to 2e-7 (Abramowitz and Stegun, 7.1.26)."""
    one, z = v.splat(ONE), v.absolute(x)
    t = v.div(one, v.fma(z, v.splat(np.float32(0.3275911)), one))
    y = v.splat(np.float32(1.061405429))
    y = v.fma(y, t, v.splat(np.float32(-1.453152027)))
    y = v.fma(y, t, v.splat(np.float32(1.421413741)))
    y = v.fma(y, t, v.splat(np.float32(-0.284496736)))
    y = v.mul(v.fma(y, t, v.splat(np.float32(0.254829592))), t)
    return v.with_sign_of(v.sub(one, v.mul(y, v.exp(v.sub(v.splat(ZERO), v.mul(z, z))))), x)


@jit
def activation(kind, x):
    """One of the engine's activations, by its number in `loquela.engine.program`."""
    zero, one, half = v.splat(ZERO), v.splat(ONE), v.splat(HALF)
    if kind == 0:  # silu
        return v.div(x, v.add(one, v.exp(v.sub(zero, x))))
    if kind == 1:  # relu
        return v.maximum(x, zero)
    if kind == 2:  # relu²
        y = v.maximum(x, zero)
        return v.mul(y, y)
    if kind == 3:  # gelu by tanh
        inner = v.mul(v.fma(v.mul(v.mul(x, x), x), v.splat(np.float32(0.044715)), x), v.splat(np.float32(0.7978845608)))
        return v.mul(v.mul(half, x), v.add(one, _tanh(inner)))
    if kind == 4:  # gelu
        return v.mul(v.mul(half, x), v.add(one, _erf(v.mul(x, v.splat(np.float32(0.7071067811865476))))))
    return _tanh(x)


@jit
def activate(op, t, first, last):
    """`activation(gate) ⊙ up`, or `activation(up)` where nothing is gated, of columns from `first` to `last`.

    With a `cap` it is `cap · activation(up / cap)`.
    """
    kind, src, hidden, gated, dst = op[1], op[2] + t * op[3], op[4], op[5], op[6] + t * op[7]
    cap = v.bits_to_float(op[14])
    for i in range(first, min(last, hidden), 16):
        count = min(16, hidden - i)
        x = v.load_first(src + 4 * i, count)
        y = v.mul(activation(kind, v.div(x, v.splat(cap))), v.splat(cap)) if cap != ZERO else activation(kind, x)
        if gated != 0:
            y = v.mul(y, v.load_first(src + 4 * (hidden + i), count))
        v.store_first(dst + 4 * i, y, count)
    if op[10] != 0:
        quantise_row(dst, op[8] + t * op[9], hidden, op[11], op[10], first, last)
