"""Threads that run a list of operations together, without locks and without waiting for one that lost its core.

An operation is cut into pieces; who comes takes the next piece that nobody has. An operation is done when its pieces
are, not when all threads have passed it: one whose core the system has taken away holds up nobody, unless it is
within a piece. Each run has a number; a thread that comes late sees another number in the counters and leaves. What a
piece computes does not depend on who computes it, so neither do the results.

The board, words of int64: see `loquela.engine.board`.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, disable-error-code="import-untyped"
from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from functools import cache as memoise
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import carray, types  # type: ignore[attr-defined]

from loquela.engine import amx
from loquela.engine import board as b
from loquela.engine import vectors as v
from loquela.engine.adapting import PARTS, adapt, adapt_slots, add
from loquela.engine.attending import attend
from loquela.engine.cached import callback, jit
from loquela.engine.experts import combine, experts, gather, route
from loquela.engine.glancing import glance, join
from loquela.engine.kernels import activate, embed, normalise, place, quantise_row, rotate_and_store
from loquela.engine.memory import address, aligned
from loquela.engine.products import ROOM, multiply
from loquela.engine.simd import define

__all__ = ["Crew"]

_RUN, _STOP = 0, 8  # words of the board
_N, _FIRST, _LAST, _COUNTERS, _PIECES, _ROOM = range(16, 22)
_ASLEEP = 64  # one line of the cache per thread from here
_LINE = 8
_PATIENCE = 4000
_BITS = 24  # of a counter: which piece; above them: which run

_TARGET, _MOST = 32768, 262144  # bytes of weights in a piece: worth a claim, and within the second-level cache

if os.name == "posix":
    _sched_yield = types.ExternalFunction("sched_yield", types.int32())

    @jit
    def _give_way():
        _sched_yield()

else:

    @jit
    def _give_way():
        v.pause()


@jit
def _pieces(board, op, threads):
    """Into how many pieces an operation is cut."""
    code, n = v.get_i64(op), board[_N]
    if code == b.MULTIPLY:
        rows = v.get_i64(op + 40)
        tiles = (rows + 15) // 16
        size = v.get_i64(op + 24) * (tiles if v.get_i64(op + 8) >= 3 else rows)
        pieces = (size + _MOST - 1) // _MOST
        if threads > 1:
            pieces = max(pieces, min(64, size * (7 + n) // 8 // _TARGET))
        return max(1, min(tiles, pieces))
    if code == b.EXPERTS:
        return min(v.get_i64(op + 104), n * v.get_i64(op + 96)) * v.get_i64(op + 88)
    if threads == 1 or code == b.ROUTE:
        return 1
    if code == b.GLANCE:
        return min(n * v.get_i64(op + 48), 8 * threads)
    if code in (b.LOWER, b.LIFT):
        return max(1, board[b.N_SPANS] * v.get_i64(op + 16) * (PARTS if code == b.LIFT else 1))
    if code == b.SCALE:
        return max(1, board[b.N_SPANS])
    if code in (b.ADAPT_SLOTS, b.SCALE_SLOTS):
        return min(n * v.get_i64(op + 88), 8 * threads)
    if code == b.ATTEND:
        return min(v.get_i64(op + 32) * board[b.N_BLOCKS], 16 * threads)
    if code in (b.ACTIVATE, b.GATHER):
        return min(n * v.get_i64(op + 96) * (v.get_i64(op + 120) if code == b.ACTIVATE else 1), 8 * threads)
    return min(n, 8 * threads)


def _piece(board_at, op_at, index, total, me):
    """Do piece `index` of `total` of an operation."""
    board, op = carray(board_at, (_ASLEEP,)), carray(op_at, (b.COLUMNS,))
    code, n = op[0], board[_N]
    if code == b.MULTIPLY:
        tiles = (op[5] + 15) // 16
        multiply(op, n, tiles * index // total, tiles * (index + 1) // total, board[_ROOM] + me * ROOM)
    elif code == b.EXPERTS:
        experts(op, index, board[_ROOM] + me * ROOM)
    elif code == b.ROUTE:
        route(op, n)
    elif code == b.GATHER:
        for slot in range(n * op[12] * index // total, n * op[12] * (index + 1) // total):
            gather(op, slot)
    elif code == b.ATTEND:
        kv_heads, blocks = op[4], board[b.N_BLOCKS]
        items = kv_heads * blocks
        scratch = board[b.SCRATCH] + me * board[b.SCRATCH_STRIDE]
        for item in range(items * index // total, items * (index + 1) // total):
            block = board[b.BLOCKS] + item // kv_heads * 16
            start, count = v.get_i64(block), v.get_i64(block + 8)
            pages = v.get_i64(board[b.MEMORY if op[13] == 2 else b.PAGES] + 8 * start)
            ends = board[b.POSITIONS if op[13] == 0 else b.ENDS]
            attend(op, start, count, item % kv_heads, board[b.POSITIONS], ends, pages, scratch)
    elif code == b.ACTIVATE:
        # pieces of a row are whole groups, so that each can be rounded by itself
        parts, items = op[12], n * op[12] * op[15]
        for item in range(items * index // total, items * (index + 1) // total):
            width = ((op[13] + 63) // 64 + parts - 1) // parts * 64
            first = item % parts * width
            activate(op, item // parts, first, min(op[13], first + width))
    elif code in (b.LOWER, b.LIFT, b.SCALE):
        adapt(board, op, index, total)
    elif code in (b.ADAPT_SLOTS, b.SCALE_SLOTS):
        adapt_slots(board, op, n * op[11] * index // total, n * op[11] * (index + 1) // total)
    elif code == b.GLANCE:
        items = n * op[6]
        for item in range(items * index // total, items * (index + 1) // total):
            glance(op, item // op[6], item % op[6])
    elif code == b.ROTATE:
        angles = v.get_i64(board[b.ANGLES] + 8 * op[15]) if op[15] >= 0 else 0
        first, last = n * index // total, n * (index + 1) // total
        rotate_and_store(op, first, last, board[b.POSITIONS], board[b.PAGES], angles)
    else:
        for t in range(n * index // total, n * (index + 1) // total):
            position = v.get_i64(board[b.POSITIONS] + 8 * t)
            if code == b.NORM:
                normalise(op, t)
            elif code == b.QUANTISE:
                quantise_row(op[1] + t * op[2], op[3] + t * op[4], op[5], op[6], op[7], 0, op[6])
            elif code == b.EMBED:
                given = v.get_i64(board[b.VECTORS] + 8 * t) if board[b.VECTORS] != 0 else 0
                embed(op, t, v.get_i64(board[b.TOKENS] + 8 * t), position, given)
            elif code == b.ADD:
                add(op, t)
            elif code == b.PLACE:
                place(op, t, position)
            elif code == b.COMBINE:
                combine(op, t)
            elif code == b.JOIN:
                join(op, t)


@memoise
def _piece_address() -> int:
    """Where the code of `_piece` is: called by its address, it is not compiled once more with each of its callers."""
    address: int = callback(_piece, "void(CPointer(int64), CPointer(int64), int64, int64, int64)").address
    return address


def _emit_call(e: Any, function: Any, *arguments: Any) -> None:
    kind = ir.FunctionType(ir.VoidType(), [a.type for a in arguments])
    e.b.call(e.b.inttoptr(function, kind.as_pointer()), arguments)


_call = define("call_piece", types.void, (types.int64,) * 6, _emit_call)


@jit
def _work(board, base, ops, run, me, piece):
    """Take part in a run until it is done, or until another has begun."""
    mask = (1 << _BITS) - 1
    for index in range(board[_FIRST], board[_LAST]):
        counter = board[_COUNTERS] + index * 128
        total = v.get_i64(board[_PIECES] + 8 * index)
        while True:
            word = v.peek(counter)
            if word >> _BITS != run:
                return
            if word & mask >= total:
                break
            if v.claim(counter, word, word + 1) == 1:
                _call(piece, base, ops + 8 * b.COLUMNS * index, word & mask, total, me)
                v.count_up(counter + 64, 1)
        spins = 0
        while True:
            word = v.peek(counter + 64)
            if word >> _BITS != run:
                return
            if word & mask >= total:
                break
            v.pause()
            spins += 1
            if spins > 2000:
                _give_way()


@jit
def lead(board, base, ops, run, threads, piece):
    """Begin run number `run` and do it together with whoever comes.

    The counters are set before the numbers of pieces: a thread that is late by a run must find nothing to claim.
    """
    for index in range(board[_FIRST], board[_LAST]):
        counter = board[_COUNTERS] + index * 128
        v.publish(counter, run << _BITS)
        v.publish(counter + 64, run << _BITS)
    for index in range(board[_FIRST], board[_LAST]):
        v.publish(board[_PIECES] + 8 * index, _pieces(board, ops + 8 * b.COLUMNS * index, threads))
    v.publish(base + 8 * _RUN, run)
    _work(board, base, ops, run, 0, piece)


@jit
def follow(board, base, ops, me, last, patience, piece):
    """Take part in every run; returns the number of the last one when none has come for `patience` looks."""
    asleep = base + 8 * (_ASLEEP + me * _LINE)
    v.publish(asleep, 0)
    while True:
        looks = 0
        while True:
            run = v.peek(base + 8 * _RUN)
            if run != last:
                break
            if v.peek(base + 8 * _STOP) != 0:
                return -1
            v.pause()
            looks += 1
            if looks > 200:
                _give_way()
            if looks > patience:
                v.publish(asleep, 1)
                if v.peek(base + 8 * _RUN) == last:
                    return last
                v.publish(asleep, 0)
        last = run
        _work(board, base, ops, run, me, piece)


class Crew:
    """A list of up to `most` operations, the threads that run it, and the board by which they know what to do."""

    def __init__(self, most: int, threads: int) -> None:
        self.ops = np.zeros((most, b.COLUMNS), dtype=np.int64)
        self.threads, self.run_number = threads, 0
        size = _ASLEEP + threads * _LINE
        self.board = aligned(8 * size).view(np.int64)
        self._counters = aligned(128 * most)
        self._pieces = aligned(8 * most)
        self._room = aligned(threads * ROOM if amx.available() else 0)
        for word, array in ((_COUNTERS, self._counters), (_PIECES, self._pieces), (_ROOM, self._room)):
            self.board[word] = address(array)
        self._wake = [threading.Semaphore(0) for _ in range(threads)]
        self._started = False
        self._words: Any = memoryview(self.board)  # type: ignore[arg-type]  # written into sooner than an array
        self._at = address(self.board), address(self.ops)
        self._finalizer = weakref.finalize(self, _stop, self.board, self._wake)

    def load(self, ops: Sequence[Sequence[int]]) -> None:
        """Take other operations, between two runs."""
        self.ops[:] = 0
        for row, op in zip(self.ops, ops, strict=False):
            row[: len(op)] = op

    def run(self, first: int, last: int, n: int, arrays: dict[int, int]) -> None:
        """Run the operations from `first` to `last` for `n` rows; `arrays` are words of the board."""
        if not self._started:
            self._start()
        board = self._words
        board[_FIRST], board[_LAST], board[_N] = first, last, n
        for word, value in arrays.items():
            board[word] = value
        for me in range(1, self.threads):
            if board[_ASLEEP + me * _LINE]:
                board[_ASLEEP + me * _LINE] = 0
                self._wake[me].release()
        self.run_number += 1
        lead(self.board, *self._at, self.run_number, self.threads, _piece_address())

    def _start(self) -> None:
        self._started = True
        for me in range(1, self.threads):
            arguments = (self.board, self.ops, me, self._wake[me], (self._counters, self._pieces, self._room))
            threading.Thread(target=_member, args=arguments, name=f"loquela-engine-{me}", daemon=True).start()


def _member(board: npt.NDArray[np.int64], ops: npt.NDArray[np.int64], me: int, wake: Any, kept: Any) -> None:
    last = 0
    while True:
        last = follow(board, address(board), address(ops), me, last, _PATIENCE, _piece_address())
        if last < 0:
            return
        wake.acquire()
        if board[_STOP]:
            return


def _stop(board: npt.NDArray[np.int64], wake: list[threading.Semaphore]) -> None:
    board[_STOP] = 1
    for semaphore in wake:
        semaphore.release()
