"""A mixture of experts: which of them each token uses, and products of the tokens of each.

A token and one of its experts are a slot. Slots of one expert stand side by side, so that its weights are read once;
what is computed for a slot does not depend on how many there are. An expert that no token uses is not read.

`active` says of whom there is something to do: how many experts, then for each its number, its first slot, how many it
has. `tokens` has each slot's token; `slots` and `weights` have each token's slots, in the order of the experts.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, disable-error-code="import-untyped"
from __future__ import annotations

import numpy as np
from numba import types

from loquela.engine import vectors as v
from loquela.engine.cached import jit
from loquela.engine.kernels import quantise_row
from loquela.engine.products import product
from loquela.engine.simd import define

__all__ = ["combine", "experts", "gather", "route"]

ZERO, ONE, LEAST = np.float32(0), np.float32(1), np.float32(-np.inf)
set_i64 = define("set_i64", types.void, (types.int64, types.int64), lambda e, a, x: e.store(a, x))


@jit
def _softmax(row, count):
    """In place, of `count` numbers."""
    top = v.splat(LEAST)
    for i in range(0, count, 16):
        held = min(16, count - i)
        for j in range(held, 16):
            v.set_f32(row + 4 * (i + j), LEAST)
        top = v.maximum(v.load(row + 4 * i), top)
    top = v.splat(v.top_lane(top))
    total = v.splat(ZERO)
    for i in range(0, count, 16):
        y = v.exp(v.sub(v.load(row + 4 * i), top))
        v.store(row + 4 * i, y)
        total = v.add(total, y)
    whole = v.splat(v.sum_lanes(total))
    for i in range(0, count, 16):
        v.store(row + 4 * i, v.div(v.load(row + 4 * i), whole))


@jit
def route(op, n):
    """Choose the experts of `n` tokens by their router's logits (of equals the first), and give each a slot."""
    logits, stride, count, chosen, normalise = op[1], op[2], op[3], op[4], op[5]
    active, tokens, slots, weights, places = op[6], op[7], op[8], op[9], op[10]
    for e in range(count):
        set_i64(places + 8 * e, 0)
    for t in range(n):
        row, picks, shares = logits + t * stride, slots + 8 * chosen * t, weights + 4 * chosen * t
        _softmax(row, count)
        total = ZERO
        for held in range(chosen):
            best, most = np.int64(0), np.float32(-1)
            for e in range(count):
                share = v.get_f32(row + 4 * e)
                if share > most:
                    best, most = e, share
            v.set_f32(row + 4 * best, np.float32(-2))
            total += most
            set_i64(places + 8 * best, v.get_i64(places + 8 * best) + 1)
            i = held
            while i > 0 and v.get_i64(picks + 8 * (i - 1)) > best:  # in the order of the experts
                set_i64(picks + 8 * i, v.get_i64(picks + 8 * (i - 1)))
                v.set_f32(shares + 4 * i, v.get_f32(shares + 4 * (i - 1)))
                i -= 1
            set_i64(picks + 8 * i, best)
            v.set_f32(shares + 4 * i, most)
        if normalise != 0:
            for i in range(chosen):
                v.set_f32(shares + 4 * i, v.get_f32(shares + 4 * i) / total)
    used, first = np.int64(0), np.int64(0)
    for e in range(count):
        held = v.get_i64(places + 8 * e)
        set_i64(places + 8 * e, first)
        if held > 0:
            entry = active + 8 + 24 * used
            set_i64(entry, e)
            set_i64(entry + 8, first)
            set_i64(entry + 16, held)
            used += 1
        first += held
    set_i64(active, used)
    for t in range(n):
        for i in range(chosen):
            at = slots + 8 * (chosen * t + i)
            next_ = places + 8 * v.get_i64(at)
            slot = v.get_i64(next_)
            set_i64(next_, slot + 1)
            set_i64(tokens + 8 * slot, t)
            set_i64(at, slot)


@jit
def gather(op, slot):
    """Copy a token's row to one of its slots, rounded to int8 as well where that is asked for."""
    src, dst, width = op[1] + v.get_i64(op[5] + 8 * slot) * op[2], op[3] + slot * op[4], op[6]
    for i in range(0, width, 16):
        held = min(16, width - i)
        v.store_first(dst + 4 * i, v.load_first(src + 4 * i, held), held)
    if op[9] != 0:
        quantise_row(dst, op[7] + slot * op[8], width, op[10], op[9], 0, op[10])


@jit
def experts(op, index, room):
    """Piece number `index`: some tiles of the product of one expert with its slots; see `products.multiply`."""
    kind, table, w_s, k, m, x, x_s, y, y_s = op[1], op[2], op[3], op[4], op[5], op[6], op[7], op[8], op[9]
    active, parts, zeros = op[10], op[11], op[14]
    if index // parts >= v.get_i64(active):
        return
    entry, part, tiles = active + 8 + 24 * (index // parts), index % parts, (m + 15) // 16
    w, first, count = v.get_i64(table + 8 * v.get_i64(entry)), v.get_i64(entry + 8), v.get_i64(entry + 16)
    if w == 0:  # it is stored in another way
        return
    product(
        kind, w, w_s, k, m, x + first * x_s, x_s, y + first * y_s, y_s, zeros, 0, zeros, 0, 0,
        count, tiles * part // parts, tiles * (part + 1) // parts, room,
    )  # fmt: skip


@jit
def combine(op, t):
    """`y = Σ weight · expert`, over a token's slots, and what all tokens share times the sigmoid of its gate."""
    src, stride, slots, weights, chosen = op[1], op[2], op[3] + 8 * op[5] * t, op[4] + 4 * op[5] * t, op[5]
    dst, width, shared = op[6] + t * op[7], op[8], op[9]
    share = v.splat(ZERO)
    if shared != 0:
        gate = v.splat(v.get_f32(op[11] + t * op[12]))
        share = v.div(v.splat(ONE), v.add(v.splat(ONE), v.exp(v.sub(v.splat(ZERO), gate))))
    for i in range(0, width, 16):
        held = min(16, width - i)
        y = v.splat(ZERO)
        for j in range(chosen):
            row = src + v.get_i64(slots + 8 * j) * stride
            y = v.fma(v.load_first(row + 4 * i, held), v.splat(v.get_f32(weights + 4 * j)), y)
        if shared != 0:
            y = v.fma(v.load_first(shared + t * op[10] + 4 * i, held), share, y)
        v.store_first(dst + 4 * i, y, held)
