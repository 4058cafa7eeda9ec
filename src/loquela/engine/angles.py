"""What positions do in attention, computed as far as they go: angles that turn, and biases on scores by distance."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from loquela.engine.bricks import unknown
from loquela.engine.memory import address
from loquela.layers.positions import Rotary

__all__ = ["Angles", "Biases", "Turn", "alone"]

Turn = Callable[[Tensor], "Rotary | Sequence[Rotary | None]"]
"""From positions (seq,) to the rotation there: one for all layers, or one per layer."""
_SPAN = 1024  # positions of a table: each is always computed among the same neighbours


class Angles:
    """Tables of cosines and sines, one for each way in which layers turn; none for a network that turns nothing."""

    def __init__(self, turn: Turn | None, layers: int, window: int) -> None:
        self._tables: list[list[npt.NDArray[np.float32]]] = []
        self.slots, self.turned = [-1] * layers, 0
        """Which table each layer turns by (-1: none), and over how many dimensions."""
        self.address = 0
        """Where the addresses of the tables stand."""
        if turn is None:
            return
        self._rotary = turn
        given = self._rotary(torch.arange(1))
        each = [given] * layers if isinstance(given, Rotary) else list(given)[:layers]
        self._distinct = list({id(r): i for i, r in enumerate(each) if r is not None}.values())
        numbers = {id(each[i]): slot for slot, i in enumerate(self._distinct)}
        self._tables = [[] for _ in self._distinct]
        spans = -(-window // _SPAN) + 1
        self._addresses = [np.zeros(spans, dtype=np.int64) for _ in self._distinct]
        self._slot_addresses = np.array([a.ctypes.data for a in self._addresses], dtype=np.int64)
        self.address = address(self._slot_addresses) if self._tables else 0
        widths = {each[i].cos.shape[-1] for i in self._distinct}  # type: ignore[union-attr]
        if len(widths) > 1:
            raise unknown("layers that rotate different numbers of dimensions")
        self.slots = [numbers.get(id(r), -1) for r in each]
        self.turned = widths.pop() if widths else 0

    def reach(self, position: int) -> int:
        """Have angles up to a position; return up to which there are some."""
        reached = (position // _SPAN + 1) * _SPAN
        while self._tables and len(self._tables[0]) * _SPAN < reached:
            span = len(self._tables[0])
            given = self._rotary(torch.arange(span * _SPAN, (span + 1) * _SPAN))
            for slot, layer in enumerate(self._distinct):
                rotary = given if isinstance(given, Rotary) else given[layer]
                assert rotary is not None
                half = rotary.cos.shape[-1] // 2
                table = torch.cat((rotary.cos[0, 0, :, :half], rotary.sin[0, 0, :, :half]), -1).float().numpy().copy()
                self._tables[slot].append(table)
                self._addresses[slot][span] = table.ctypes.data
        return reached


class Biases:
    """What is added to each head's scores by how far back a key lies, the same in all layers.

    `of` maps offsets (n,), a key's position minus the query's, to biases (heads, n). Where queries look `ahead` too,
    there are offsets of both signs.
    """

    def __init__(self, of: Callable[[Tensor], Tensor], *, ahead: bool) -> None:
        self._of, self._ahead = of, ahead
        self._table = torch.empty(0)
        self._words = np.zeros(3, dtype=np.int64)

    @property
    def address(self) -> int:
        """Where it stands where the biases are; see `loquela.engine.attending`."""
        return self._words.ctypes.data

    def reach(self, positions: int) -> None:
        """Have biases for so many positions, given in whole spans."""
        far = positions - 1
        if self._words[1] >= far:
            return
        offsets = torch.arange(-far, far + 1 if self._ahead else 1)
        table = self._of(offsets).detach().float()
        self._table = torch.cat((table, table.new_zeros(len(table), 16)), dim=1)  # blocks of sixteen end behind
        self._words[:] = address(self._table), far, self._table.shape[1] * 4


def alone(network: Any) -> Any:
    """The network without its weights, to compute angles by."""
    light = copy.copy(network)
    light._modules = {}
    return light
