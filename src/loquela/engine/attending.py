"""Attention of queries to the pages of their request."""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

import numpy as np

from loquela.engine import vectors as v
from loquela.engine.cached import jit
from loquela.engine.storing import CACHE_KINDS, key_block, value_row
from loquela.engine.tiles import fetch, scores, values

__all__ = ["ROWS", "attend"]

ROWS = 4
"""Queries that share the reading of keys and values."""
_AHEAD = 4
"""How many blocks ahead a page is fetched: a head's part of it is short, and too new for the processor to foresee.
Tokens that come together read a page again and again: it is at hand."""
ZERO, ONE, LEAST = np.float32(0), np.float32(1), np.float32(-np.inf)

_scores_1, _scores_4 = (scores(tuple(CACHE_KINDS), rows, 2) for rows in (1, ROWS))
_scores_1_alone, _scores_4_alone = (scores(tuple(CACHE_KINDS), rows) for rows in (1, ROWS))
_values_1, _values_4 = (values(tuple(CACHE_KINDS), rows) for rows in (1, ROWS))


@jit
def _score(rows, blocks, kind, q, q_s, keys, width, out, out_s):
    """Of 1 or 2 blocks of a page."""
    if rows == ROWS:
        if blocks == 2:
            _scores_4(kind, q, q_s, keys, width, out, out_s)
        else:
            _scores_4_alone(kind, q, q_s, keys, width, out, out_s)
        return
    for i in range(rows):
        if blocks == 2:
            _scores_1(kind, q + i * q_s, q_s, keys, width, out + i * out_s, out_s)
        else:
            _scores_1_alone(kind, q + i * q_s, q_s, keys, width, out + i * out_s, out_s)


@jit
def _value(rows, kind, p, p_s, values_, width, count, out, out_s):
    if rows == ROWS:
        _values_4(kind, p, p_s, values_, width, count, out, out_s)
        return
    for i in range(rows):
        _values_1(kind, p + i * p_s, p_s, values_, width, count, out + i * out_s, out_s)


@jit
def _softmax(row, first, last, low, high):
    """Turn the scores of the blocks from `first` to `last` into e^(score - largest); returns one over their sum.

    Positions below `low` and above `high` count nothing.
    """
    for block in range(first, last + 1):
        at = row + (block - first) * 64
        start = block * 16
        if start < low or start + 15 > high:
            for i in range(16):
                if start + i < low or start + i > high:
                    v.set_f32(at + 4 * i, LEAST)
    largest = v.splat(LEAST)
    for block in range(last - first + 1):
        largest = v.maximum(v.load(row + block * 64), largest)
    top = v.splat(v.top_lane(largest))
    total = v.splat(ZERO)
    for block in range(last - first + 1):
        y = v.exp(v.sub(v.load(row + block * 64), top))
        v.store(row + block * 64, y)
        total = v.add(total, y)
    return ONE / v.sum_lanes(total)


@jit
def _bend(row, first, last, cap, bias):
    """Keep the scores of the blocks from `first` to `last` within ±`cap` (0: as they are); add those at `bias`."""
    one, two = v.splat(ONE), v.splat(np.float32(2))
    for block in range(last - first + 1):
        at = row + block * 64
        y = v.load(at)
        if cap != ZERO:  # tanh x = 1 - 2 / (e²ˣ + 1)
            y = v.div(y, v.splat(cap))
            y = v.sub(one, v.div(two, v.add(v.exp(v.add(y, y)), one)))
            y = v.mul(y, v.splat(cap))
        if bias != 0:
            y = v.add(y, v.load(bias + (first + block) * 64))
        v.store(at, y)


@jit
def attend(op, start, count, kv_head, positions, ends, pages, scratch):
    """What `count` tokens of one request see, from the `start`-th of this call, through one key-value head.

    Each token has a position, and an end: the last position that it may look at. `scratch` holds four rows of scores,
    as long as the longest request, after four rows of sums.
    """
    qkv, stride, heads, kv_heads, width, window = op[1], op[2], op[3], op[4], op[5], op[6]
    offset, head_bytes, kind, out, out_s, padded = op[7], op[8], op[9], op[10], op[11], op[12]
    cap, biases = v.bits_to_float(op[14]), op[15]
    shared = heads // kv_heads
    block_bytes, value_bytes = key_block(kind, width), value_row(kind, padded)
    score_s = v.get_i64(scratch)
    queries = scratch + 64
    sums = queries + ROWS * padded * 4
    table = sums + ROWS * padded * 4
    total, alone = count * shared, count == 1
    done = 0
    while done < total:
        rows = min(ROWS, total - done)
        high = low = np.int64(-1)
        for i in range(rows):
            token = start + (done + i) // shared
            head = kv_head * shared + (done + i) % shared
            place = v.get_i64(positions + 8 * token)
            high = max(high, v.get_i64(ends + 8 * token))
            least = 0 if window == 0 else max(0, place - window + 1)
            low = least if low < 0 else min(low, least)
            src = qkv + token * stride + head * width * 4
            for d in range(0, padded, 16):
                v.store(queries + (i * padded + d) * 4, v.load_first(src + 4 * d, min(16, width - d)))
                v.store(sums + (i * padded + d) * 4, v.splat(ZERO))
        first, last = low // 16, high // 16
        inside = offset + kv_head * head_bytes
        block = first
        while block <= last:
            page = v.get_i64(pages + 8 * (block // 2)) + inside
            if alone and (block + _AHEAD) // 2 <= last // 2:
                fetch(v.get_i64(pages + 8 * ((block + _AHEAD) // 2)) + inside, 2 * block_bytes)
            together = 2 if block % 2 == 0 and block < last else 1
            keys = page + block % 2 * block_bytes
            _score(rows, together, kind, queries, padded * 4, keys, width, table + (block - first) * 64, score_s)
            block += together
        for i in range(rows):
            token = start + (done + i) // shared
            place, end = v.get_i64(positions + 8 * token), v.get_i64(ends + 8 * token)
            least = 0 if window == 0 else max(0, place - window + 1)
            if cap != ZERO or biases != 0:
                bias = np.int64(0)
                if biases != 0:  # where they are, the distance of the first, bytes of each head's
                    head = kv_head * shared + (done + i) % shared
                    far, bytes_each = v.get_i64(biases + 8), v.get_i64(biases + 16)
                    bias = v.get_i64(biases) + head * bytes_each + 4 * (far - place)
                _bend(table + i * score_s, first, last, cap, bias)
            v.set_f32(scratch + 16 + 4 * i, _softmax(table + i * score_s, first, last, least, end))
        for block in range(first, last + 1):
            page = v.get_i64(pages + 8 * (block // 2)) + inside
            if alone and (block + _AHEAD) // 2 <= last // 2 and block % 2 == first % 2:
                ahead = v.get_i64(pages + 8 * ((block + _AHEAD) // 2)) + inside + 2 * block_bytes
                fetch(ahead, 32 * value_bytes)
            seen = page + 2 * block_bytes + block % 2 * 16 * value_bytes
            held = min(16, high + 1 - block * 16)
            _value(rows, kind, table + (block - first) * 64, score_s, seen, padded // 16, held, sums, padded * 4)
        for i in range(rows):
            token = start + (done + i) // shared
            head = kv_head * shared + (done + i) % shared
            dst = out + token * out_s + head * width * 4
            inverse = v.splat(v.get_f32(scratch + 16 + 4 * i))
            for d in range(0, width, 16):
                y = v.mul(v.load(sums + (i * padded + d) * 4), inverse)
                v.store_first(dst + 4 * d, y, min(16, width - d))
        done += rows
