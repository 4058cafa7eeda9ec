"""The angles by which queries and keys are turned, computed as far as positions go."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from loquela.engine.program import unknown
from loquela.layers.positions import Rotary

__all__ = ["Angles"]

_SPAN = 1024  # positions of a table: each is always computed among the same neighbours


class Angles:
    """Tables of cosines and sines, one for each way in which layers turn; none for a network that turns nothing."""

    def __init__(self, network: Any, layers: int, window: int, *, rotates: bool) -> None:
        self._tables: list[list[npt.NDArray[np.float32]]] = []
        self.slots, self.turned = [-1] * layers, 0
        """Which table each layer turns by (-1: none), and over how many dimensions."""
        if not rotates:
            return
        self._rotary = _alone(network)
        given = self._rotary(torch.arange(1))
        each = [given] * layers if isinstance(given, Rotary) else list(given)[:layers]
        self._distinct = list({id(r): i for i, r in enumerate(each) if r is not None}.values())
        numbers = {id(each[i]): slot for slot, i in enumerate(self._distinct)}
        self._tables = [[] for _ in self._distinct]
        spans = -(-window // _SPAN) + 1
        self._addresses = [np.zeros(spans, dtype=np.int64) for _ in self._distinct]
        self._slot_addresses = np.array([a.ctypes.data for a in self._addresses], dtype=np.int64)
        widths = {each[i].cos.shape[-1] for i in self._distinct}  # type: ignore[union-attr]
        if len(widths) > 1:
            raise unknown("layers that rotate different numbers of dimensions")
        self.slots = [numbers.get(id(r), -1) for r in each]
        self.turned = widths.pop() if widths else 0

    @property
    def address(self) -> int:
        """Where the addresses of the tables stand."""
        return self._slot_addresses.ctypes.data if self._tables else 0

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


def _alone(network: Any) -> Callable[[Tensor], Rotary | Sequence[Rotary | None]]:
    """The network's angles, without keeping its weights in memory."""
    light = copy.copy(network)
    light._modules = {}
    return light.rotary  # type: ignore[no-any-return]
