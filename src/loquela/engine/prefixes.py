"""Beginnings of prompts that were read before, kept to be gone on from.

What is kept ends where the schedule of the decode loop cuts a prompt, at a multiple of `CHUNK`; so a prompt that
begins there computes the rest exactly as if it had read all itself.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from loquela.generation.decode import CHUNK
from loquela.layers.cache import Cache
from loquela.layers.recurrent import StateCache

__all__ = ["Prefixes", "bytes_held"]


class Prefixes:
    """Caches of beginnings, the least recently used dropped first once they hold more than `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self._kept: OrderedDict[tuple[str | None, tuple[int, ...]], tuple[Cache, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, adapter: str | None, prompt: Sequence[int]) -> tuple[Cache, int] | None:
        """Return a cache of the caller's own that holds the beginning of `prompt`, and how much of it: not all."""
        best, longest = None, 0
        for key, (cache, _) in self._kept.items():
            if key[0] == adapter:
                common = _common(key[1], prompt[:-1]) // CHUNK * CHUNK
                whole = common == len(key[1])
                if common > longest and (whole or not isinstance(cache, StateCache)):  # a state cannot be unread
                    best, longest = key, common
        if best is None:
            return None
        self._kept.move_to_end(best)
        held = self._kept[best][0]
        own = copy.deepcopy(held)
        own.truncate(held.length - (len(best[1]) - longest))  # a soft prompt may stand before the prompt
        return own, longest

    def keep(self, adapter: str | None, beginning: Sequence[int], cache: Cache) -> None:
        """Keep a copy of `cache`, which holds `beginning`; one that is a beginning of it is dropped for it."""
        tokens = tuple(beginning)
        if not tokens or len(tokens) % CHUNK:
            return
        covered = [
            key
            for key, (kept, _) in self._kept.items()
            if key[0] == adapter and (key[1] == tokens or (tokens[: len(key[1])] == key[1] and _rewinds(kept)))
        ]
        for key in covered:
            self._drop(key)
        size = bytes_held(cache)
        if size > self.limit:
            return
        self.make_room(self.limit - size)
        self._kept[(adapter, tokens)] = (copy.deepcopy(cache), size)
        self.bytes += size

    def make_room(self, most: int) -> None:
        """Drop the least recently used until no more than `most` bytes are held."""
        while self._kept and self.bytes > most:
            self._drop(next(iter(self._kept)))

    def forget(self, adapter: str | None) -> None:
        """Drop all that an adapter computed."""
        for key in [key for key in self._kept if key[0] == adapter]:
            self._drop(key)

    def _drop(self, key: tuple[str | None, tuple[int, ...]]) -> None:
        self.bytes -= self._kept.pop(key)[1]


def _rewinds(cache: Cache) -> bool:
    return not isinstance(cache, StateCache)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the longest beginning that both have."""
    shorter = min(len(one), len(other))
    same = np.asarray(one[:shorter]) == np.asarray(other[:shorter])
    return shorter if same.all() else int(same.argmin())


def bytes_held(thing: Any) -> int:
    """Return the bytes of all tensors and arrays in a cache, spare room included."""
    if isinstance(own := getattr(thing, "bytes", None), int):
        return own
    if isinstance(thing, torch.Tensor):
        return thing.numel() * thing.element_size()
    if isinstance(thing, np.ndarray):
        return thing.nbytes
    if isinstance(thing, list | tuple):
        return sum(map(bytes_held, thing))
    return bytes_held(list(vars(thing).values())) if isinstance(getattr(thing, "__dict__", None), dict) else 0
