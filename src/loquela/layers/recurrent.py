"""Layers that read one token after the other and carry a state along (Elman, 1990, doi:10.1207/s15516709cog1402_1)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from loquela.errors import UsageError
from loquela.layers.cache import Cache
from loquela.layers.masks import real_first

__all__ = ["Recurrent", "StateCache"]

State = tuple[Tensor, ...]
"""What the layers carry along, each (layers, batch, dim): hidden states, and for an LSTM its cells."""


class StateCache(Cache):
    """The state of a recurrent network after the tokens read so far: of one size, however many they were."""

    unreads = False

    def __init__(self) -> None:
        super().__init__(0)
        self.state: State | None = None
        self._length = 0

    @property
    def length(self) -> int:
        """Positions read so far."""
        return self._length

    def advance(self, state: State, positions: int) -> None:
        """Replace the state by the one `positions` later."""
        self.state, self._length = state, self._length + positions

    def truncate(self, length: int) -> None:
        """Go back to the beginning; raises `UsageError` for any place between, since a state cannot be unread."""
        if 0 < length < self._length:
            raise UsageError(
                f"a recurrent state holds no past: go back to 0 and read again, not from {self._length} to {length}"
            )
        if length == 0:
            self.state, self._length = None, 0

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) the batch rows with indices `rows` (n,), in that order."""
        if self.state is not None:
            self.state = tuple(part.index_select(1, rows) for part in self.state)


class Recurrent(nn.Module):
    """Layers of one kind of cell, one above the other, in torch's own kernels.

    `kind` is `nn.RNN` (`h = tanh(W x + U h + b)`), `nn.LSTM` (Hochreiter and Schmidhuber, 1997) or `nn.GRU` (Cho et
    al., arXiv:1406.1078). Dropout stands between the layers, never along time (arXiv:1409.2329).
    """

    def __init__(
        self, kind: type[nn.RNN] | type[nn.LSTM] | type[nn.GRU], input_dim: int, dim: int, layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.cells = kind(input_dim, dim, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)

    def forward(self, x: Tensor, *, cache: StateCache | None = None, padding: Tensor | None = None) -> Tensor:
        """Read `x` (batch, seq, input_dim) from the state of `cache`, or from zero; returns (batch, seq, dim).

        `padding` (batch, cached + seq) is True where a token is real; the state passes over what is not.
        """
        before = None if cache is None else cache.state
        real = None if padding is None else padding[:, -x.shape[1] :]
        if real is None or bool(real.all()):
            y, after = self._run(x, before)
        else:
            y, after = self._run_padded(x, before, real)
        if cache is not None:
            cache.advance(after, x.shape[1])
        return y

    def _run(self, x: Tensor | PackedSequence, state: State | None) -> tuple[Tensor, State]:
        # torch's kernels take and give a tensor where there is one part, a pair where there are two
        y, after = self.cells(x, state if state is None or len(state) > 1 else state[0])
        return y, (after,) if isinstance(after, Tensor) else tuple(after)

    def _run_padded(self, x: Tensor, state: State | None, real: Tensor) -> tuple[Tensor, State]:
        """Move each row's real tokens to its front, run them packed, and move what comes out back to its place."""
        order, back = real_first(real)
        lengths = real.sum(1)
        front = x.gather(1, order[..., None].expand_as(x))
        # the kernel refuses an empty row: it reads one token that is then taken back
        packed = pack_padded_sequence(front, lengths.clamp_min(1).cpu(), batch_first=True, enforce_sorted=False)
        packed_y, after = self._run(packed, state)
        y, _ = pad_packed_sequence(cast(PackedSequence, packed_y), batch_first=True, total_length=x.shape[1])
        some = (lengths > 0)[None, :, None]
        old = tuple(torch.zeros_like(part) for part in after) if state is None else state
        y = y.gather(1, back[..., None].expand_as(y))
        return y, tuple(torch.where(some, a, b) for a, b in zip(after, old, strict=True))
