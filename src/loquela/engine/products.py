"""Matrix products of a few or many rows, with weights in whichever way they are stored."""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

from loquela.engine import amx
from loquela.engine import vectors as v
from loquela.engine.cached import jit
from loquela.engine.tiles import dot_tile, packed_tile

__all__ = ["KINDS", "ROOM", "few_bits", "multiply", "product"]

KINDS = {"float32": 0, "bfloat16": 1, "float16": 2, "int8": 3, "int4": 4}
_TILES = 5  # the kind of int8, then of int4, where many tokens are multiplied by the processor's own tiles
_MANY = 32
GROUP = 32
_SPREAD, _SCALES = 1 << 19, 1 << 16
ROOM = _SPREAD + amx.SLACK + _SCALES
"""Bytes that each thread needs beside a product."""

_f32_1, _f32_2, _f32_6 = (dot_tile("float32", 4, tokens) for tokens in (1, 2, 6))
_bf16_1, _bf16_6 = (dot_tile("bfloat16", 4, tokens) for tokens in (1, 6))
_f16_1, _f16_6 = (dot_tile("float16", 4, tokens) for tokens in (1, 6))
_f32_alone, _bf16_alone, _f16_alone = (dot_tile(dtype, 1, 1) for dtype in ("float32", "bfloat16", "float16"))
_int8_1, _int8_2, _int8_4, _int8_8 = (packed_tile(8, GROUP, tokens) for tokens in (1, 2, 4, 8))
_int4_1, _int4_2, _int4_4, _int4_8 = (packed_tile(4, GROUP, tokens) for tokens in (1, 2, 4, 8))

_spread8, _spread4 = amx.spread(8), amx.spread(4)
_configure, _release = amx.configure(GROUP), amx.release
_spread_1, _spread_2 = (amx.multiply_spread(GROUP, together) for together in (1, 2))


def few_bits(bits: int) -> int:
    """The kind of matrices of `bits` 8 or 4 on this machine."""
    return KINDS[f"int{bits}"] + (_TILES - KINDS["int8"] if amx.available() else 0)


@jit
def _by_tiles(kind, w, w_s, k, x, x_s, y, y_s, bias, bias_step, res, res_s, res_step, n, first, last, room):
    """See `multiply`; `n` must be whole sixteens, and a tile that is spread fit into `room`."""
    scales, x_scales = 2 * k * (8 if kind == 3 else 4), room + _SPREAD + amx.SLACK
    several = _SPREAD // (16 * k)
    _configure()
    while first < last:
        count = min(several, last - first)
        at = w + first * w_s
        for tile in range(count):
            if kind == 3:
                _spread8(at + tile * w_s, k, room + tile * 16 * k)
            else:
                _spread4(at + tile * w_s, k, room + tile * 16 * k)
        row = 16 * first
        b, b_s, r_s = bias + bias_step * row, 16 * bias_step, 16 * res_step
        for t in range(0, n, 16):
            xs, ys, rs = x + t * x_s, y + t * y_s + 4 * row, res + t * res_s + res_step * row
            for i in range(16):
                for g in range(k // GROUP):
                    v.set_f32(x_scales + 64 * g + 4 * i, v.get_f32(xs + i * x_s + k + 4 * g))
            if k % (2 * GROUP) == 0:
                _spread_2(room, at + scales, w_s, count, xs, x_s, x_scales, k, ys, y_s, b, b_s, rs, res_s, r_s)
            else:
                _spread_1(room, at + scales, w_s, count, xs, x_s, x_scales, k, ys, y_s, b, b_s, rs, res_s, r_s)
        first += count
    _release()


@jit
def _step(kind, left):
    """How many of the tokens that are left the next tile takes."""
    if kind >= 3:
        return 8 if left >= 8 else 4 if left >= 4 else 2 if left >= 2 else 1
    return 6 if left >= 6 else 2 if kind == 0 and left >= 2 else 1


@jit
def _int8(step, w, x, x_s, k, y, y_s, b, r, r_s):
    if step == 1:
        _int8_1(w, x, x_s, k, y, y_s, b, r, r_s)
    elif step == 2:
        _int8_2(w, x, x_s, k, y, y_s, b, r, r_s)
    elif step == 4:
        _int8_4(w, x, x_s, k, y, y_s, b, r, r_s)
    else:
        _int8_8(w, x, x_s, k, y, y_s, b, r, r_s)


@jit
def _int4(step, w, x, x_s, k, y, y_s, b, r, r_s):
    if step == 1:
        _int4_1(w, x, x_s, k, y, y_s, b, r, r_s)
    elif step == 2:
        _int4_2(w, x, x_s, k, y, y_s, b, r, r_s)
    elif step == 4:
        _int4_4(w, x, x_s, k, y, y_s, b, r, r_s)
    else:
        _int4_8(w, x, x_s, k, y, y_s, b, r, r_s)


@jit
def _four_rows(kind, step, w, w_s, x, x_s, k, y, y_s, b, r, r_s):
    if kind == 0:
        if step == 1:
            _f32_1(w, w_s, x, x_s, k, y, y_s, b, r, r_s)
        elif step == 2:
            _f32_2(w, w_s, x, x_s, k, y, y_s, b, r, r_s)
        else:
            _f32_6(w, w_s, x, x_s, k, y, y_s, b, r, r_s)
    elif kind == 1:
        if step == 1:
            _bf16_1(w, w_s, x, x_s, k, y, y_s, b, r, r_s)
        else:
            _bf16_6(w, w_s, x, x_s, k, y, y_s, b, r, r_s)
    elif step == 1:
        _f16_1(w, w_s, x, x_s, k, y, y_s, b, r, r_s)
    else:
        _f16_6(w, w_s, x, x_s, k, y, y_s, b, r, r_s)


@jit
def _one_row(kind, w, w_s, x, x_s, k, y, y_s, b, r, r_s):
    if kind == 0:
        _f32_alone(w, w_s, x, x_s, k, y, y_s, b, r, r_s)
    elif kind == 1:
        _bf16_alone(w, w_s, x, x_s, k, y, y_s, b, r, r_s)
    else:
        _f16_alone(w, w_s, x, x_s, k, y, y_s, b, r, r_s)


@jit
def multiply(op, n, first, last, room):
    """Tiles from `first` to `last` of `x Wᵀ + bias + residual` for `n` rows; at `room` are `ROOM` bytes."""
    product(
        op[1], op[2], op[3], op[4], op[5], op[6], op[7], op[8], op[9], op[10], op[11], op[12], op[13], op[14],
        n, first, last, room,
    )  # fmt: skip


@jit
def product(kind, w, w_s, k, m, x, x_s, y, y_s, bias, bias_step, res, res_s, res_step, n, first, last, room):
    """See `multiply`.

    A tile is sixteen rows of W. The tokens are the outer loop: the tiles of a call stay in the second-level cache.
    """
    t = 0
    if kind >= _TILES:
        kind -= _TILES - 3
        if n >= _MANY and 16 * k <= _SPREAD:
            t = n // 16 * 16
            _by_tiles(kind, w, w_s, k, x, x_s, y, y_s, bias, bias_step, res, res_s, res_step, t, first, last, room)
    while t < n:
        step = _step(kind, n - t)
        xs, ys, rs = x + t * x_s, y + t * y_s, res + t * res_s
        for tile in range(first, last):
            row = 16 * tile
            if kind >= 3:
                at, b, r = w + tile * w_s, bias + bias_step * row, rs + res_step * row
                if kind == 3:
                    _int8(step, at, xs, x_s, k, ys + 4 * row, y_s, b, r, res_s)
                else:
                    _int4(step, at, xs, x_s, k, ys + 4 * row, y_s, b, r, res_s)
                continue
            end = min(row + 16, m)
            while row + 4 <= end:
                b, r, at = bias + bias_step * row, rs + res_step * row, w + row * w_s
                _four_rows(kind, step, at, w_s, xs, x_s, k, ys + 4 * row, y_s, b, r, res_s)
                row += 4
            while row < end:
                b, r, at = bias + bias_step * row, rs + res_step * row, w + row * w_s
                for i in range(step):
                    _one_row(kind, at, w_s, xs + i * x_s, x_s, k, ys + i * y_s + 4 * row, y_s, b, r + i * res_s, res_s)
                row += 1
        t += step
