"""How keys and values lie in a page, and how they get there.

A page holds 32 positions of all layers; of a head first its keys, in two blocks of sixteen positions, dimension after
dimension, then its values, position after position, filled up to sixteens. In float32 (kind 0), float16 (1), or int8
(2): then each position of a head has a scale for its key, behind the block, and one for its value, behind that.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

import numpy as np

from loquela.engine import vectors as v
from loquela.engine.cached import jit

__all__ = ["CACHE_KINDS", "key_block", "store", "store_all", "value_row"]

CACHE_KINDS = {"float32": 0, "float16": 1, "int8": 2}
_ZERO, _MAGIC = np.float32(0), np.float32(12582912.0)  # 1.5 · 2²³: adding it leaves the nearest whole number


@jit
def key_block(kind, width):
    """Bytes of sixteen keys."""
    return width * 64 if kind == 0 else width * 32 if kind == 1 else width * 16 + 64


@jit
def value_row(kind, padded):
    """Bytes of one value."""
    return padded * 4 if kind == 0 else padded * 2 if kind == 1 else padded + 16


@jit
def _scale(src, width):
    top = v.splat(_ZERO)
    for i in range(0, width, 16):
        top = v.maximum(v.absolute(v.load_first(src + 4 * i, min(16, width - i))), top)
    return v.top_lane(top) / np.float32(127)


@jit
def _inverse(scale):
    if scale == _ZERO:
        return _ZERO
    inverse = np.float32(1) / scale
    return inverse if inverse < np.float32(3e38) else _ZERO  # of denormal numbers nothing is kept


@jit
def store(kind, head, inside, width, padded, key, value):
    """Put the `key` and `value` of a token into position `inside` of the part of a page that a `head` has."""
    lane, block = inside % 16, head + inside // 16 * key_block(kind, width)
    if kind == 2:
        scale = _scale(key, width)
        inverse = _inverse(scale)
        for i in range(width):
            code = v.get_f32(key + 4 * i) * inverse + _MAGIC - _MAGIC
            v.set_u8(block + 16 * i + lane, np.int64(code))
        v.set_f32(block + 16 * width + 4 * lane, scale)
    else:
        for i in range(width):
            if kind == 1:
                v.set_f16(block + 32 * i + 2 * lane, v.get_f32(key + 4 * i))
            else:
                v.set_f32(block + 64 * i + 4 * lane, v.get_f32(key + 4 * i))
    out = head + 2 * key_block(kind, width) + inside * value_row(kind, padded)
    scale = _scale(value, width) if kind == 2 else _ZERO
    inverse = v.splat(_inverse(scale))
    for i in range(0, padded, 16):
        x = v.load_first(value + 4 * i, min(16, width - i))
        if kind == 2:
            v.quantise_lanes(v.mul(x, inverse), out + i)
        elif kind == 1:
            v.store_f16(out + 2 * i, x)
        else:
            v.store(out + 4 * i, x)
    if kind == 2:
        v.set_f32(out + padded, scale)


@jit
def store_all(kind, head, width, padded, count, keys, values):
    """Put `count` keys and values (positions, width) into the first positions of the part of a page of a `head`."""
    for inside in range(count):
        store(kind, head, inside, width, padded, keys + 4 * width * inside, values + 4 * width * inside)
