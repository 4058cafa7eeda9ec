"""The compiled engine's cache: pages of 32 positions, which several caches can share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from loquela.engine.memory import address, aligned
from loquela.engine.storing import key_block, store_all, value_row
from loquela.errors import UsageError
from loquela.layers.cache import Cache

__all__ = ["POSITIONS", "LayerPages", "Layout", "PagedCache", "Row"]

POSITIONS = 32
"""Positions of a page, which holds them for all layers."""


@dataclass(frozen=True)
class LayerPages:
    """Where a page holds a layer, and how; see `loquela.engine.storing`."""

    offset: int
    kv_heads: int
    width: int
    padded: int
    kind: int

    @property
    def head_bytes(self) -> int:
        """Bytes of one head."""
        return int(2 * key_block(self.kind, self.width) + POSITIONS * value_row(self.kind, self.padded))


class Layout:
    """What a page holds: layers one after the other, or, where they `share` it, each after another's time."""

    def __init__(self, kind: int, *, share: bool = False) -> None:
        self.kind, self.bytes, self.layers = kind, 0, list[LayerPages]()
        self._share = share

    def add(self, kv_heads: int, width: int) -> LayerPages:
        """Make room for one more layer."""
        offset = 0 if self._share else self.bytes
        layer = LayerPages(offset, kv_heads, width, -(-width // 16) * 16, self.kind)
        self.bytes = max(self.bytes, offset + kv_heads * layer.head_bytes)
        self.layers.append(layer)
        return layer


class Row:
    """The pages of one text. A page that another row may see too is copied before anything is written into it."""

    memory: Row | None = None
    """What an encoder made of the source; never changed, so that rows share it."""
    text: list[int] | None = None
    """The tokens themselves, where they may have to be read anew."""
    long: bool = False
    """Whether what is held was turned by the angles of long texts."""

    def __init__(self, page_bytes: int) -> None:
        self.page_bytes, self.length, self.virtual = page_bytes, 0, 0
        self.pages: list[npt.NDArray[np.uint8]] = []
        self.own: list[bool] = []
        self._held_by(np.zeros(8, dtype=np.int64))

    def grow(self, new: int) -> None:
        """Make room for `new` more positions and count them as held."""
        first, end = self.length // POSITIONS, -(-(self.length + new) // POSITIONS)
        if first < len(self.pages) and not self.own[first]:
            page = aligned(self.page_bytes)
            page[:] = self.pages[first]
            self._put(first, page)
        for index in range(len(self.pages), end):
            self._put(index, aligned(self.page_bytes))
        self.length += new

    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` positions."""
        self.length = min(self.length, length)
        kept = -(-self.length // POSITIONS)
        del self.pages[kept:], self.own[kept:]
        self.text = None if self.text is None else self.text[: max(0, self.length - self.virtual)]

    def fork(self) -> Row:
        """Return a row that holds the same and goes on by itself; the pages are shared until one of both writes."""
        other = Row(self.page_bytes)
        other.length, other.pages = self.length, list(self.pages)
        other._held_by(self._addresses.copy())
        other.virtual, other.memory, other.long = self.virtual, self.memory, self.long
        other.text = None if self.text is None else list(self.text)
        self.own = [False] * len(self.pages)
        other.own = list(self.own)
        return other

    def begin(self, virtual: Row) -> None:
        """Start from a row of virtual positions; there must be nothing yet."""
        other = virtual.fork()
        self.length, self.pages, self.own = other.length, other.pages, other.own
        self._held_by(other._addresses)
        self.virtual = self.length

    def write(self, layer: LayerPages, keys: npt.NDArray[np.float32], values: npt.NDArray[np.float32]) -> None:
        """Put a layer's `keys` and `values` (key-value heads, positions, head_dim) into the first positions."""
        for page, start in zip(self.pages, range(0, keys.shape[1], POSITIONS), strict=False):
            for head in range(layer.kv_heads):
                k, v = (np.ascontiguousarray(x[head, start : start + POSITIONS]) for x in (keys, values))
                at = address(page) + layer.offset + head * layer.head_bytes
                store_all(layer.kind, at, layer.width, layer.padded, len(k), address(k), address(v))

    def _put(self, index: int, page: npt.NDArray[np.uint8]) -> None:
        if index == len(self._addresses):
            self._held_by(np.concatenate((self._addresses, np.zeros_like(self._addresses))))
        self.pages[index:] = [page, *self.pages[index + 1 :]]
        self.own[index:] = [True, *self.own[index + 1 :]]
        self._addresses[index] = address(page)

    def _held_by(self, addresses: npt.NDArray[np.int64]) -> None:
        self._addresses, self.table = addresses, address(addresses)


class PagedCache(Cache):
    """What the rows of a batch, usually one, remember; see `loquela.layers.cache.Cache`.

    A deep copy, like `select`, shares the pages.
    """

    def __init__(self, page_bytes: int, memories: Sequence[Row] = (), *, unreads: bool = True) -> None:
        super().__init__(0)
        self.rows = [Row(page_bytes) for _ in memories or (None,)]
        self.unreads = unreads
        for row, memory in zip(self.rows, memories, strict=False):
            row.memory = memory

    @property
    def length(self) -> int:
        """Positions held so far."""
        return self.rows[0].length

    @property
    def virtual(self) -> int:  # type: ignore[override]
        """How many of its first positions stand for no token."""
        return self.rows[0].virtual

    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` positions."""
        for row in self.rows:
            row.truncate(length)

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) the batch rows with indices `rows` (n,), in that order."""
        self.rows = [self.rows[index].fork() for index in rows.tolist()]

    def widen(self, rows: int) -> None:
        """Let an empty cache of one row serve a batch."""
        if len(self.rows) == rows:
            return
        if len(self.rows) > 1 or self.length:
            raise UsageError(f"a cache of {len(self.rows)} rows must go on with as many, but was given {rows}")
        self.rows = [Row(self.rows[0].page_bytes) for _ in range(rows)]

    def __deepcopy__(self, memo: dict[int, Any]) -> PagedCache:
        other = PagedCache(self.rows[0].page_bytes, unreads=self.unreads)
        other.rows = [row.fork() for row in self.rows]
        return other

    @property
    def bytes(self) -> int:
        """Memory of the pages, shared ones included."""
        memories = [row.memory for row in self.rows if row.memory is not None]
        return sum(page.nbytes for page in _once(page for row in [*self.rows, *memories] for page in row.pages))


def _once(pages: Iterable[npt.NDArray[np.uint8]]) -> Iterable[npt.NDArray[np.uint8]]:
    return {id(page): page for page in pages}.values()
