"""What a rounded network keeps of an embedding: one rule, for a table in memory and one that is still in its file."""

from __future__ import annotations

import torch
from torch import Tensor

from loquela.checkpoint.tensors import StoredTensor

__all__ = ["in_16_bits"]

_PIECE = 1 << 22  # numbers that are looked at together


def in_16_bits(table: Tensor | StoredTensor) -> Tensor:
    """Return a table (rows, dim) of floating point numbers in 16 bits where that can be.

    One that has 16 bits stays as it is. Of others bfloat16 is kept where it loses nothing, else float16 where every
    number is within its range, else float32.
    """
    if table.dtype.itemsize == 2:
        return table.read() if isinstance(table, StoredTensor) else table.detach()

    def read(start: int, end: int) -> Tensor:
        return (table.read_rows(start, end) if isinstance(table, StoredTensor) else table.detach()[start:end]).float()

    exact, near = (torch.empty(table.shape, dtype=dtype) for dtype in (torch.bfloat16, torch.float16))
    is_exact = is_near = True
    rows = max(1, _PIECE // max(1, exact[:1].numel()))
    for start in range(0, len(exact), rows):
        place = slice(start, min(start + rows, len(exact)))
        part = read(place.start, place.stop)
        if is_exact:
            exact[place] = part
            is_exact = torch.equal(exact[place].float(), part)
        if is_near:
            near[place] = part
            is_near = bool(near[place].isfinite().all())
        if not is_exact and not is_near:
            return read(0, len(exact))
    return exact if is_exact else near
