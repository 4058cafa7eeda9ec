"""Weights of 8 and 4 bits: how they are rounded, and how they lie in memory.

A matrix (rows, columns) is cut into groups of 32 columns. A group has a scale `s` (bfloat16) and codes: a weight is
`s · code`, with codes from -127 to 127 at 8 bits (8.5 bits a weight) and from -8 to 7 at 4 bits (4.5). At 8 bits `s` is
the largest magnitude over 127; at 4 bits it is searched for: the one of some forty candidates with the least squared
error.

`packed` lays a matrix out as the kernels read it. Sixteen rows are a tile, rows filled up with zeros to whole tiles,
columns to whole groups. Of a tile first come all codes, by groups: those of 4 columns of row 0, of row 1, …, row 15,
then the next 4 columns; each code is a byte, 128 more than it is. At 4 bits a byte holds the code of a column in its
lower half and of the column 4 later in the upper, 8 more than they are. Behind the codes stand the scales: those of the
sixteen rows for the first group, then for the next.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from loquela.engine import vectors as v
from loquela.engine.cached import jit
from loquela.engine.memory import Arena, address

__all__ = ["GROUP", "Codes", "packed", "quantised"]

GROUP = 32
_ROWS = 16
ZERO, ONE, HALF = np.float32(0), np.float32(1), np.float32(0.5)


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


def quantised(weight: Tensor, bits: int) -> Codes:
    """Round a matrix (rows, columns) of floating point to `bits` 8 or 4."""
    rows, columns = weight.shape
    padded = -(-columns // GROUP) * GROUP
    codes = torch.empty(rows, columns, dtype=torch.int8)
    scales = torch.empty(rows, padded // GROUP, dtype=torch.bfloat16)
    block = max(1, (1 << 20) // padded)
    for start in range(0, rows, block):  # float32 copies of a few rows at a time
        part = torch.zeros(min(block, rows - start), padded)
        part[:, :columns] = weight[start : start + block].detach()
        found = torch.empty(part.shape, dtype=torch.int8)
        _round(address(part), len(part) * padded // GROUP, bits, address(found), address(scales[start : start + block]))
        codes[start : start + block] = found[:, :columns]
    return Codes(bits, codes, scales)


@jit
def _code(x, inverse, low, high):
    """The nearest code, as a whole number in float32."""
    magic = v.splat(np.float32(12582912.0))
    y = v.sub(v.add(v.mul(x, v.splat(inverse)), magic), magic)
    return v.sub(v.splat(ZERO), v.maximum(v.sub(v.splat(ZERO), v.maximum(y, v.splat(low))), v.splat(-high)))


@jit
def _error(x, y, scale, inverse, low, high):
    a = v.fma(_code(x, inverse, low, high), v.splat(-scale), x)
    b = v.fma(_code(y, inverse, low, high), v.splat(-scale), y)
    return v.sum_lanes(v.fma(a, a, v.mul(b, b)))


@jit
def _bfloat16(x):
    """The nearest bfloat16."""
    bits = v.float_bits(x)
    return v.bits_to_float((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16)


@jit
def _round(src, groups, bits, codes, scales):
    low = np.float32(-127) if bits == 8 else np.float32(-8)
    high = np.float32(127) if bits == 8 else np.float32(7)
    for group in range(groups):
        x, y = v.load(src + group * 128), v.load(src + group * 128 + 64)
        top = v.top_lane(v.maximum(x, y))
        bottom = v.top_lane(v.maximum(v.sub(v.splat(ZERO), x), v.sub(v.splat(ZERO), y)))
        largest = max(top, bottom)
        if bits == 8:
            best = _bfloat16(largest / np.float32(127))
        else:
            best = ZERO
            least = np.float32(np.inf)
            for sign in range(2):
                for step in range(20):
                    # -8 reaches one further than 7: either end of the group may be the one that gets it
                    scale = _bfloat16(largest / (np.float32(5.0) + np.float32(0.2) * np.float32(step)))
                    scale = scale if sign == 0 else -scale
                    if scale == ZERO:
                        continue
                    error = _error(x, y, scale, ONE / scale, low, high)
                    if error < least:
                        least, best = error, scale
        inverse = ONE / best if best != ZERO else ZERO
        if not abs(inverse) < np.float32(3e38):
            best = inverse = ZERO
        v.quantise_lanes(_code(x, inverse, low, high), codes + group * 32)
        v.quantise_lanes(_code(y, inverse, low, high), codes + group * 32 + 16)
        v.set_u16(scales + 2 * group, v.float_bits(best) >> 16)


@jit
def _pack(codes, scales, rows, columns, first, bits, out, tile_bytes, padded):
    """Write the codes of a matrix into tiles, from row number `first` on."""
    groups = padded // 32
    for r in range(rows):
        tile, lane = (first + r) // 16, (first + r) % 16
        base = out + tile * tile_bytes
        for k in range(columns):
            code = np.int64(codes[r, k])
            if bits == 8:
                v.set_u8(base + k // 4 * 64 + lane * 4 + k % 4, code + 128)
            else:
                at = base + k // 8 * 64 + lane * 4 + k % 4
                held = v.get_u8(at)
                shift = 4 * (k // 4 % 2)
                v.set_u8(at, (held & (0xF0 >> shift)) | ((code + 8) << shift))
        for g in range(groups):
            v.set_u16(base + padded * 2 * bits + (g * 16 + lane) * 2, np.int64(scales[r, g]))


def packed(parts: list[Codes], arena: Arena | None = None) -> tuple[npt.NDArray[np.uint8], int, int]:
    """Lay matrices out one below the other: the bytes, how many of them a tile has, and the padded columns."""
    bits, columns = parts[0].bits, parts[0].codes.shape[1]
    padded = -(-columns // GROUP) * GROUP
    tile_bytes = padded * 2 * bits + padded // GROUP * 2 * _ROWS
    rows = sum(len(part.codes) for part in parts)
    out = (arena or Arena(0)).take(-(-rows // _ROWS) * tile_bytes)
    if padded != columns or rows % _ROWS:
        out[:] = 128 if bits == 8 else 0x88
        view = out.reshape(-1, tile_bytes)
        view[:, padded * 2 * bits :] = 0
    first = 0
    for part in parts:
        scales = part.scales.view(torch.int16).numpy().view(np.uint16)
        _pack(part.codes.numpy(), scales, *part.codes.shape, first, bits, address(out), tile_bytes, padded)
        first += len(part.codes)
    return out, tile_bytes, padded
