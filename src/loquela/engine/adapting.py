"""What adapters do to rows: `h = activation(A z + a)`, then `y = scale ⊙ y + shift + B h`; and `x = factor ⊙ x`.

LoRA (rsLoRA, DoRA), (IA)³ and bottlenecks are all of this form, each with some of its terms. Rows that wear the same
adapter stand together: a span. Of a span, A and B are read once; a number is summed in an order that only its adapter's
shapes decide, so that a row gets the same bits in any span.

An adapter is a table with a record of sixteen int64 for each site, a place of the network that it can reach; what the
columns mean stands in `loquela.engine.outfits`. In a mixture a row is a slot (`loquela.engine.experts`),
whose sites are those of its expert.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

from loquela.engine import board as b
from loquela.engine import vectors as v
from loquela.engine.cached import jit
from loquela.engine.kernels import activation, quantise_row
from loquela.engine.products import product

__all__ = ["PARTS", "RECORD", "adapt", "adapt_slots", "add"]

RECORD = 16
PARTS = 2
"""Of the columns that an adapter adds to, in as many pieces."""


@jit
def _record(table, site):
    return table + site * 8 * RECORD


@jit
def _lower(op, record, start, count, low, low_stride, ids, positions):
    """`h = activation(A z + a)` of `count` rows at one site; an embedding's h is looked up."""
    rank = v.get_i64(record)
    if rank == 0:
        return
    a, width, bias, act, own = (
        v.get_i64(record + 8),
        v.get_i64(record + 16),
        v.get_i64(record + 24),
        v.get_i64(record + 32),
        v.get_i64(record + 40),
    )
    h = low + start * low_stride + v.get_i64(record + 48)
    if op[7] != 0:  # an embedding: a column of A for each id, or each position
        which = ids if op[7] == 1 else positions
        for t in range(count):
            column = a + 4 * v.get_i64(which + 8 * (start + t))
            for j in range(rank):
                v.set_f32(h + t * low_stride + 4 * j, v.get_f32(column + 4 * width * j))
        return
    z, z_stride = (op[5], op[6]) if own != 0 else (op[3], op[4])
    zeros = op[8]
    bias, step = (bias, 4) if bias != 0 else (zeros, 0)
    tiles = (rank + 15) // 16
    z += start * z_stride
    product(0, a, 4 * width, width, rank, z, z_stride, h, low_stride, bias, step, zeros, 0, 0, count, 0, tiles, 0)
    if act >= 0:
        for t in range(count):
            for i in range(0, rank, 16):
                at, held = h + t * low_stride + 4 * i, min(16, rank - i)
                v.store_first(at, activation(act, v.load_first(at, held)), held)


@jit
def _start(y, held, factor, shift):
    x = v.load_first(y, held)
    if factor != 0:
        x = v.mul(x, v.load_first(factor, held))
    if shift != 0:
        x = v.add(x, v.load_first(shift, held))
    return x


@jit
def _lift(op, record, start, count, low, low_stride, part, parts):
    """`y = scale ⊙ y + shift + B h` of `count` rows at one site: part number `part` of so many of the columns."""
    rank, up, width = v.get_i64(record), v.get_i64(record + 56), v.get_i64(record + 64)
    factor, shift = v.get_i64(record + 80), v.get_i64(record + 88)
    if rank == 0 and factor == 0 and shift == 0:
        return
    h = low + start * low_stride + v.get_i64(record + 48)
    y, stride = op[5] + start * op[6] + v.get_i64(record + 72), op[6]
    tiles = (width + 15) // 16
    for tile in range(tiles * part // parts, tiles * (part + 1) // parts):
        held, w, at = min(16, width - 16 * tile), up + tile * rank * 64, 64 * tile
        f = factor + at if factor != 0 else 0
        s = shift + at if shift != 0 else 0
        t = 0
        while t + 4 <= count:  # four rows share the reading of B
            p, q = y + t * stride + at, h + t * low_stride
            y0, y1 = _start(p, held, f, s), _start(p + stride, held, f, s)
            y2, y3 = _start(p + 2 * stride, held, f, s), _start(p + 3 * stride, held, f, s)
            for j in range(rank):
                column, k = v.load(w + 64 * j), q + 4 * j
                y0 = v.fma(v.splat(v.get_f32(k)), column, y0)
                y1 = v.fma(v.splat(v.get_f32(k + low_stride)), column, y1)
                y2 = v.fma(v.splat(v.get_f32(k + 2 * low_stride)), column, y2)
                y3 = v.fma(v.splat(v.get_f32(k + 3 * low_stride)), column, y3)
            v.store_first(p, y0, held)
            v.store_first(p + stride, y1, held)
            v.store_first(p + 2 * stride, y2, held)
            v.store_first(p + 3 * stride, y3, held)
            t += 4
        while t < count:
            p, q = y + t * stride + at, h + t * low_stride
            y0 = _start(p, held, f, s)
            for j in range(rank):
                y0 = v.fma(v.splat(v.get_f32(q + 4 * j)), v.load(w + 64 * j), y0)
            v.store_first(p, y0, held)
            t += 1


@jit
def _scale(record, start, count, x, stride, width, rounded, rounded_stride, group, padded):
    """`x = factor ⊙ x` of `count` rows, before the product of one site; rounded once more where that needs it."""
    factor = v.get_i64(record + 96)
    if factor == 0:
        return
    for t in range(start, start + count):
        row = x + t * stride
        for i in range(0, width, 16):
            held = min(16, width - i)
            v.store_first(row + 4 * i, v.mul(v.load_first(row + 4 * i, held), v.load_first(factor + 4 * i, held)), held)
        if group != 0:
            quantise_row(row, rounded + t * rounded_stride, width, padded, group, 0, padded)


@jit
def adapt(board, op, index, total):
    """Piece `index` of `total` of what adapters do: items are spans, by sites and parts of columns."""
    code, low, stride = op[0], board[b.LOW], board[b.LOW_STRIDE]
    sites = 1 if code == b.SCALE else op[2]
    parts = PARTS if code == b.LIFT else 1
    items = board[b.N_SPANS] * sites * parts
    for item in range(items * index // total, items * (index + 1) // total):
        span = board[b.SPANS] + item // (sites * parts) * 24
        start, count = v.get_i64(span), v.get_i64(span + 8)
        record = _record(v.get_i64(span + 16), op[1] + item // parts % sites)
        if code == b.LOWER:
            _lower(op, record, start, count, low, stride, board[b.TOKENS], board[b.POSITIONS])
        elif code == b.LIFT:
            _lift(op, record, start, count, low, stride, item % parts, parts)
        else:
            _scale(record, start, count, op[2], op[3], op[4], op[5], op[6], op[7], op[8])


@jit
def adapt_slots(board, op, first, last):
    """What adapters do to the slots from `first` to `last`: those of one expert and one span are done together."""
    per, active, tokens, end = op[2], op[9], op[10], board[b.SPANS] + 24 * board[b.N_SPANS]
    for i in range(v.get_i64(active)):
        entry, span = active + 8 + 24 * i, board[b.SPANS]
        expert, begin = v.get_i64(entry), v.get_i64(entry + 8)
        slot, behind = max(first, begin), min(last, begin + v.get_i64(entry + 16))
        while slot < behind and span < end:
            token, start = v.get_i64(tokens + 8 * slot), v.get_i64(span)
            if token >= start + v.get_i64(span + 8):
                span += 24
                continue
            count = 1
            while slot + count < behind and v.get_i64(tokens + 8 * (slot + count)) < start + v.get_i64(span + 8):
                count += 1
            if token < start:
                count = 1
            else:
                _adapt_run(board, op, _record(v.get_i64(span + 16), op[1] + expert * per), slot, count)
            slot += count


@jit
def _adapt_run(board, op, record, slot, count):
    low, stride = board[b.LOW], board[b.LOW_STRIDE]
    if op[0] == b.SCALE_SLOTS:
        _scale(record, slot, count, op[3], op[4], op[12], op[5], op[6], op[7], op[8])
        return
    for site in range(op[2]):
        _lower(op, record + 8 * RECORD * site, slot, count, low, stride, 0, 0)
        _lift(op, record + 8 * RECORD * site, slot, count, low, stride, 0, 1)


@jit
def add(op, t):
    """`x += y` of a row."""
    y, x, width = op[1] + t * op[2], op[3] + t * op[4], op[5]
    for i in range(0, width, 16):
        held = min(16, width - i)
        v.store_first(x + 4 * i, v.add(v.load_first(y + 4 * i, held), v.load_first(x + 4 * i, held)), held)
