"""Soft prompts of several rows side by side, and how a cache starts from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loquela.errors import UsageError
from loquela.layers.cache import Cache, CrossCache, KeyValueCache
from loquela.layers.recurrent import StateCache
from loquela.models.base import Network
from loquela.models.phi3 import ReplayCache
from loquela.peft.base import Virtual

__all__ = ["Soft", "goes_on", "started"]


@dataclass(frozen=True)
class Soft:
    """The virtual positions of each of `rows` rows; one entry stands for all rows."""

    each: Sequence[Virtual | None]
    rows: int

    @property
    def length(self) -> int:
        """Positions of the longest."""
        return max(part.length for part in self.each if part is not None)

    def mask(self) -> Tensor:
        """Return which of the `length` positions each row has (rows or 1, length), the last ones."""
        lengths = torch.tensor([0 if part is None else part.length for part in self.each])
        return torch.arange(self.length) >= self.length - lengths[:, None]

    def before(self, padding: Tensor | None, real: int) -> Tensor | None:
        """Return the padding of virtual and `real` positions, given that of the real ones, or of both."""
        if padding is not None and padding.shape[1] == self.length + real:
            return padding
        mask = self.mask()
        if padding is None:
            if bool(mask.all()):
                return None
            padding = torch.ones(self.rows, real, dtype=torch.bool)
        return torch.cat((mask.to(padding.device).expand(len(padding), -1), padding.bool()), dim=1)

    def placeholders(self, ids: Tensor) -> Tensor:
        """Return `ids` (rows, seq) with zeros before them, to be replaced by vectors."""
        return torch.cat((ids.new_zeros(len(ids), self.length), ids), dim=1)

    def vectors(self) -> Tensor:
        """Return the vectors (rows or 1, length, dim), zeros where a row has none."""
        known = {id(part): part.vectors() for part in self.each if part is not None}
        like = next(iter(known.values()))
        return torch.stack([_on_the_left(None if p is None else known[id(p)], self.length, like) for p in self.each])


def _on_the_left(x: Tensor | None, length: int, like: Tensor) -> Tensor:
    """Fill `x` (positions, …) up with zeros to `length` positions."""
    if x is None:
        return like.new_zeros(length, *like.shape[1:])
    return x if len(x) == length else torch.cat((x.new_zeros(length - len(x), *x.shape[1:]), x))


class _OnePass(KeyValueCache):
    """Keys and values of a single forward pass: joined once, with gradients, and no room to grow."""

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.length += k.shape[2]
        self._k = k if self._k is None else torch.cat((self._k, k), dim=2)
        self._v = v if self._v is None else torch.cat((self._v, v), dim=2)
        return self._k, self._v


def started(cache: Cache, network: Network, soft: Soft, *, one_pass: bool) -> None:
    """Fill an empty `cache` with what the virtual positions of each row became."""
    if type(cache) not in (Cache, CrossCache, StateCache, ReplayCache):
        raise UsageError(
            f"virtual positions must stand in a cache that loquela knows, but {network.config.model_type} makes a "
            f"{type(cache).__name__}: tune it by another method"
        )
    if isinstance(cache, ReplayCache):
        cache.virtual = soft.length
        _fill_as_long(cache, network, soft, torch.zeros(1, dtype=torch.bool), one_pass=one_pass)
        return
    filled = {id(part): _filled(part, network) for part in soft.each if part is not None}
    each = [None if part is None else filled[id(part)] for part in soft.each]
    cache.virtual = soft.length
    if isinstance(cache, StateCache):
        first: Any = next(iter(filled.values()))
        states = [[torch.zeros_like(s) for s in first.state] if row is None else row.state for row in each]  # type: ignore[attr-defined]
        state = tuple(
            torch.cat(parts, dim=1).expand(-1, soft.rows, -1).contiguous() for parts in zip(*states, strict=True)
        )
        cache.advance(state, soft.length)
        return
    _fill(cache, each, soft, one_pass=one_pass)


def goes_on(cache: Cache, network: Network, soft: Soft, *, one_pass: bool) -> None:
    """Have a cache that may compute its text anew do so behind these virtual positions."""
    if isinstance(cache, ReplayCache):

        def refill(cache: ReplayCache, long: Tensor) -> None:
            _fill_as_long(cache, network, soft, long, one_pass=one_pass)

        cache.refill = refill


def _fill_as_long(cache: ReplayCache, network: Network, soft: Soft, long: Tensor, *, one_pass: bool) -> None:
    """Fill with what the virtual positions of each row became, where texts are `long` (rows or 1,) and where not."""
    rows = soft.rows if len(soft.each) > 1 or len(long) > 1 else 1
    each = [*soft.each] if len(soft.each) == rows else [*soft.each] * rows
    turns = long.expand(rows).tolist()
    filled = {(id(part), turn): _filled(part, network, turn) for part, turn in zip(each, turns, strict=True) if part}
    found = [None if part is None else filled[id(part), turn] for part, turn in zip(each, turns, strict=True)]
    _fill(cache, found, soft, one_pass=one_pass)
    cache.long = long


def _fill(cache: Cache, each: Sequence[Cache | None], soft: Soft, *, one_pass: bool) -> None:
    if one_pass:
        cache.layers = [_OnePass() for _ in cache.layers]
    for index, layer in enumerate(cache.layers):
        held = [None if row is None else row.layers[index].held() for row in each]
        layer.extend(*(_rows([None if h is None else h[i] for h in held], soft) for i in range(2)))


def _rows(each: list[Tensor | None], soft: Soft) -> Tensor:
    """Put what each row holds (1, heads, positions, head_dim) side by side: (rows, heads, length, head_dim)."""
    like = next(x for x in each if x is not None)[0].transpose(0, 1)  # (positions, heads, head_dim)
    padded = [_on_the_left(None if x is None else x[0].transpose(0, 1), soft.length, like) for x in each]
    return torch.stack(padded).transpose(1, 2).expand(soft.rows, -1, -1, -1)


def _filled(part: Virtual, network: Network, long: bool | None = None) -> Cache:
    """Return a cache of one row with what a soft prompt became; kept until it or the base changes.

    `long` says how texts are turned, where that depends on their length.
    """
    wardrobe: Any = network.wardrobe
    own = next(adapter for adapter in wardrobe.adapters.values() if adapter.virtual is part)
    tensors = [*network.parameters(), *(tensor for _, tensor in own.tensors())]
    if network.training or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
        part.kept.clear()  # an update may follow, and a fused one does not say so in a version
        return part.became(network, long)
    key = sum(t._version for t in tensors), tensors[0].dtype, tensors[0].device
    if long not in part.kept or part.kept[long][0] != key:
        with torch.no_grad():
            part.kept[long] = key, part.became(network, long)
    return part.kept[long][1]
