"""Weights of 8 and 4 bits: how they are rounded, and how they lie in memory.

A matrix (rows, columns) is cut into groups of 32 columns. A group has a scale `s` (bfloat16) and codes: a weight is
`s · code`, with codes from -127 to 127 at 8 bits (8.5 bits a weight) and from -8 to 7 at 4 bits (4.5). At 8 bits `s` is
the largest magnitude over 127; at 4 bits it is searched for: see `loquela.engine.rounding`.

`laid_out` lays a matrix out as the kernels read it. Sixteen rows are a tile, rows filled up with zeros to whole tiles,
columns to whole groups. Of a tile first come all codes, by groups: those of 4 columns of row 0, of row 1, …, row 15,
then the next 4 columns; each code is a byte, 128 more than it is. At 4 bits a byte holds the code of a column in its
lower half and of the column 4 later in the upper, 8 more than they are. Behind the codes stand the scales: those of the
sixteen rows for the first group, then for the next.

Matrices come as tensors, as codes, or still in their file (`StoredTensor`): then a few rows at a time are read, and no
more of it is ever in memory.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from loquela.checkpoint.few_bits import StoredCodes
from loquela.checkpoint.tensors import StoredTensor
from loquela.engine import vectors as v
from loquela.engine.cached import jit
from loquela.engine.memory import Arena, address
from loquela.engine.rounding import round_group, round_rows

__all__ = ["GROUP", "Codes", "Matrix", "laid_out", "packed", "quantised", "read_back", "together"]

GROUP = 32
_ROWS = 16
_CHUNK = 1 << 19  # numbers that a thread has in hand: they stay in the caches


@dataclass(frozen=True)
class Codes:
    """A matrix of few bits: codes (rows, columns; int8) and scales (rows, ⌈columns / 32⌉; bfloat16)."""

    bits: int
    codes: Tensor
    scales: Tensor

    def dequantised(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the matrix (rows, columns) that these stand for."""
        columns = self.codes.shape[1]
        wide = self.scales.float().repeat_interleave(GROUP, dim=1)[:, :columns]
        return (self.codes.float() * wide).to(dtype)

    @property
    def shape(self) -> torch.Size:
        """Rows and columns."""
        return self.codes.shape


Matrix: TypeAlias = Tensor | Codes | StoredTensor


def quantised(weight: Tensor, bits: int) -> Codes:
    """Round a matrix (rows, columns) of floating point to `bits` 8 or 4."""
    rows, columns = weight.shape
    codes = torch.empty(rows, columns, dtype=torch.int8)
    scales = torch.empty(rows, -(-columns // GROUP), dtype=torch.bfloat16)
    block, room = max(1, _CHUNK // columns), np.empty(GROUP, dtype=np.int8)
    for start in range(0, rows, block):
        part = weight[start : start + block].detach().float().contiguous()
        round_rows(address(part), *part.shape, bits, address(codes[start:]), address(scales[start:]), address(room))
    return Codes(bits, codes, scales)


def laid_out(
    parts: Sequence[Matrix], bits: int, arena: Arena | None = None
) -> tuple[npt.NDArray[np.uint8], int, int, list[Callable[[], None]]]:
    """Give matrices, one below the other, a place as tiles of `bits`, and the work to be done to fill it.

    Returns the bytes, how many of them a tile has, the padded columns, and what must be called, in any order and by any
    threads. Codes of as many bits are taken as they are.
    """
    columns = parts[0].shape[1]
    padded = -(-columns // GROUP) * GROUP
    tile_bytes = padded * 2 * bits + padded // GROUP * 2 * _ROWS
    rows = sum(part.shape[0] for part in parts)
    out = (arena or Arena(0)).take(-(-rows // _ROWS) * tile_bytes)
    if rows % _ROWS or padded != columns:
        out.reshape(-1, tile_bytes)[:, : padded * 2 * bits] = 128 if bits == 8 else 0x88
    first, work = 0, list[Callable[[], None]]()
    block = max(1, _CHUNK // columns)
    for part in parts:
        for start in range(0, part.shape[0], block):
            end = min(part.shape[0], start + block)
            work.append(partial(_fill, part, start, end, bits, out, first + start, tile_bytes, padded))
        first += part.shape[0]
    return out, tile_bytes, padded, work


def packed(parts: Sequence[Matrix], bits: int, arena: Arena | None = None) -> tuple[npt.NDArray[np.uint8], int, int]:
    """Lay matrices out one below the other: the bytes, how many of them a tile has, and the padded columns."""
    *found, work = laid_out(parts, bits, arena)
    together(work, 1)
    return tuple(found)  # type: ignore[return-value]


def read_back(
    tiles: npt.NDArray[np.uint8], bits: int, tile_bytes: int, padded: int, rows: slice, columns: int
) -> Tensor:
    """Return what some rows (rows, columns) of matrices which `laid_out` gave a place stand for."""
    first = rows.start // _ROWS
    held = torch.from_numpy(tiles.reshape(-1, tile_bytes)[first : -(-rows.stop // _ROWS)])
    codes, scales = held[:, : padded * 2 * bits], held[:, padded * 2 * bits :].contiguous().view(torch.bfloat16)
    if bits == 8:
        codes = codes.reshape(len(held), -1, _ROWS, 4) - 128  # below zero as int8
    else:
        halves = codes.reshape(len(held), -1, _ROWS, 1, 4)
        codes = torch.cat((halves & 15, halves >> 4), dim=3) - 8
    grouped = codes.view(torch.int8).transpose(1, 2).reshape(len(held), _ROWS, -1, GROUP).float()
    grouped *= scales.view(len(held), -1, _ROWS).mT[..., None]
    return grouped.view(-1, padded)[rows.start - first * _ROWS :][: rows.stop - rows.start, :columns]


def together(work: Sequence[Callable[[], None]], threads: int) -> None:
    """Do all of the work, on several threads."""
    if threads == 1 or len(work) == 1:
        for piece in work:
            piece()
        return
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(piece) for piece in work]:
            done.result()


def _fill(
    part: Matrix, start: int, end: int, bits: int, out: npt.NDArray[np.uint8], first: int, tile_bytes: int, padded: int
) -> None:
    """Put rows from `start` to `end` of a matrix into tiles, from row number `first` on."""
    columns, place = part.shape[1], (first, bits, address(out), tile_bytes, padded)
    if isinstance(part, StoredCodes) and part.bits == bits:
        held, stored_scales = part.rows(start, end)
        scales = stored_scales.view(torch.int16).numpy()
        if columns % GROUP == 0:
            copy = _copy_bytes if bits == 8 else _copy_halves
            copy(address(held), address(stored_scales), end - start, columns, *place)
        else:
            _pack(part.codes(held).numpy(), scales, end - start, columns, *place)
    elif isinstance(part, Codes) and part.bits == bits:
        scales = part.scales[start:end].view(torch.int16).numpy()
        _pack(part.codes[start:end].numpy(), scales, end - start, columns, *place)
    else:
        rows, room = _floats(part, start, end), np.empty(GROUP, dtype=np.int8)
        _round_into(address(rows), end - start, columns, *place, address(room))


def _floats(part: Matrix, start: int, end: int) -> Tensor:
    """Rows of a matrix in float32."""
    if isinstance(part, Codes):
        part = Codes(part.bits, part.codes[start:end], part.scales[start:end])
        return part.dequantised()
    rows = part[start:end].detach() if isinstance(part, Tensor) else part.read_rows(start, end)
    return rows.float().contiguous()


@jit
def _put8(word, at):
    """Eight codes as bytes, each 128 more than it is, at their place in a tile."""
    v.set_i32(at, word)
    v.set_i32(at + 64, word >> 32)


_SIGNS = np.int64(-0x7F7F7F7F7F7F7F80)  # 0x80 in every byte
_LOWER = np.int64(0x0F0F0F0F0F0F0F0F)
_EIGHTS = np.int64(0x0808080808080808)


@jit
def _round_into(src, rows, columns, first, bits, out, tile_bytes, padded, codes):
    """Round rows of float32 into tiles, from row number `first` on; at `codes` is room for 32."""
    for r in range(rows):
        tile, lane = out + (first + r) // 16 * tile_bytes, (first + r) % 16
        for g in range(padded // 32):
            scale = round_group(src + 4 * (r * columns + 32 * g), min(32, columns - 32 * g), bits, codes)
            v.set_u16(tile + padded * 2 * bits + (g * 16 + lane) * 2, scale)
            at = tile + g * 64 * bits + lane * 4
            for k in range(4):
                word = v.get_i64(codes + 8 * k)
                if bits == 8:
                    _put8(word ^ _SIGNS, at + 128 * k)
                else:
                    word = (word ^ _EIGHTS) & _LOWER
                    v.set_i32(at + 64 * k, word | (word >> 28))


@jit
def _copy_scales(scales, groups, tile, lane):
    for g in range(groups):
        v.set_u16(tile + (g * 16 + lane) * 2, v.get_u16(scales + 2 * g))


@jit
def _copy_bytes(codes, scales, rows, columns, first, bits, out, tile_bytes, padded):
    """Put rows of codes of 8 bits, whole groups, into tiles."""
    groups = columns // 32
    for r in range(rows):
        tile, lane = out + (first + r) // 16 * tile_bytes, (first + r) % 16
        for k in range(columns // 8):
            _put8(v.get_i64(codes + r * columns + 8 * k) ^ _SIGNS, tile + 128 * k + 4 * lane)
        _copy_scales(scales + 2 * groups * r, groups, tile + padded * 16, lane)


@jit
def _apart(word):
    """Four halves of bytes, each in a byte of its own."""
    word = (word | (word << 8)) & 0x00FF00FF
    return (word | (word << 4)) & 0x0F0F0F0F


@jit
def _copy_halves(codes, scales, rows, columns, first, bits, out, tile_bytes, padded):
    """Put rows of codes of 4 bits, two neighbours in a byte, whole groups, into tiles."""
    groups = columns // 32
    for r in range(rows):
        tile, lane = out + (first + r) // 16 * tile_bytes, (first + r) % 16
        for k in range(columns // 16):
            word = v.get_i64(codes + r * columns // 2 + 8 * k)
            at = tile + 128 * k + 4 * lane
            v.set_i32(at, _apart(word & 0xFFFF) | (_apart((word >> 16) & 0xFFFF) << 4))
            v.set_i32(at + 64, _apart((word >> 32) & 0xFFFF) | (_apart((word >> 48) & 0xFFFF) << 4))
        _copy_scales(scales + 2 * groups * r, groups, tile + padded * 8, lane)


@jit
def _pack(codes, scales, rows, columns, first, bits, out, tile_bytes, padded):
    """Put codes (rows, columns; int8) and scales into tiles, one by one."""
    for r in range(rows):
        base, lane = out + (first + r) // 16 * tile_bytes, (first + r) % 16
        for k in range(columns):
            code = np.int64(codes[r, k])
            if bits == 8:
                v.set_u8(base + k // 4 * 64 + lane * 4 + k % 4, code + 128)
            else:
                at = base + k // 8 * 64 + lane * 4 + k % 4
                held = v.get_u8(at)
                shift = 4 * (k // 4 % 2)
                v.set_u8(at, (held & (0xF0 >> shift)) | ((code + 8) << shift))
        for g in range(padded // 32):
            v.set_u16(base + padded * 2 * bits + (g * 16 + lane) * 2, np.int64(scales[r, g]))
