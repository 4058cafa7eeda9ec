"""Several requests through one network, each computed as it would be alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor

from loquela.engine.choosing import compiled_already
from loquela.generation.decode import evaluating
from loquela.generation.outlook import Outlook
from loquela.layers.cache import Cache
from loquela.models.base import Network

__all__ = ["Rows", "Wear"]

T = TypeVar("T")
Wear = Callable[[str | None], AbstractContextManager[object]]
"""Lets the network wear an adapter (None: none) for as long as the context lasts."""


class Rows:
    """Runs rows of tokens, each after its own cache, with its own adapter.

    A `compiled` form of the network (`loquela.engine.decoder`) reads its weights once for all rows, whatever each of
    them wears. PyTorch's products give other bits for other shapes, so what that form does not know (`refusal`) is
    computed by the network itself, row by row.
    """

    def __init__(self, network: Network, wear: Wear | None = None, compiled: Network | None = None) -> None:
        self.network = network
        self._wear = wear or (lambda name: nullcontext())
        whole = compiled if compiled is not None else network
        self._together = whole if compiled_already(whole) else None
        self._device = next((p.device for p in network.parameters()), torch.device("cpu"))
        self._alone: dict[str, str] = {}

    def window(self, adapter: str | None) -> int:
        """Return the context window that an adapter leaves: a soft prompt takes up a part of it."""
        with self._wear(adapter):
            return self.network.context_length

    def know(self, adapter: str | None) -> str | None:
        """Take note of an adapter that was put on the network; return why its rows are computed one by one, if so."""
        if adapter is None:
            return None
        self._alone.pop(adapter, None)
        reason = None if self._together is None else self._together.refusal(adapter)
        if reason is not None:
            self._alone[adapter] = reason
        return reason

    def start(self, prompt: Sequence[int], adapter: str | None) -> tuple[Cache, list[int]]:
        """Return a cache, and the first tokens to read; see `Network.start`."""
        network = self._together if self._together is not None and self._is_together(adapter) else self.network
        with evaluating(network), self._wear(adapter):
            cache, first = network.start(torch.tensor([prompt], device=self._device))
        return cache, first[0].tolist()

    def hidden(
        self,
        tokens: Sequence[Sequence[int]],
        caches: Sequence[Cache],
        adapters: Sequence[str | None],
        wanted: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """Return the hidden states (new, dim) of each row's `tokens`, or of its `wanted` last; extend its cache."""
        counts = [len(new) for new in tokens] if wanted is None else wanted

        def together(rows: list[int]) -> Iterable[Tensor]:
            assert self._together is not None
            worn, ends = [adapters[row] for row in rows], [counts[row] for row in rows]
            return self._together.hidden_rows([tokens[row] for row in rows], [caches[row] for row in rows], worn, ends)

        def alone(row: int) -> Tensor:
            ids = torch.tensor([tokens[row]], device=self._device)
            return self.network.hidden(ids, cache=caches[row])[0, len(tokens[row]) - counts[row] :]

        return self._each(adapters, together, alone)

    def outlooks(self, hidden: Sequence[Tensor], adapters: Sequence[str | None]) -> list[Outlook]:
        """Return what may come after each hidden state (dim,)."""

        def together(rows: list[int]) -> Iterable[Outlook]:
            assert self._together is not None
            states = torch.stack([hidden[row] for row in rows])
            return self._together.outlook_rows(states, [adapters[row] for row in rows])

        def alone(row: int) -> Outlook:
            return Outlook(self.network.head(hidden[row]).double().cpu().numpy())

        return self._each(adapters, together, alone)

    def _each(
        self,
        adapters: Sequence[str | None],
        together: Callable[[list[int]], Iterable[T]],
        alone: Callable[[int], T],
    ) -> list[T]:
        """Compute all rows: those that can be at once, the others by adapter."""
        found: dict[int, T] = {}
        rows = [row for row, name in enumerate(adapters) if self._is_together(name)]
        if rows:
            with evaluating(self.network):
                found.update(zip(rows, together(rows), strict=True))
        left = [row for row in range(len(adapters)) if row not in found]
        for name in dict.fromkeys(adapters[row] for row in left):
            with evaluating(self.network), self._wear(name):
                found.update((row, alone(row)) for row in left if adapters[row] == name)
        return [found[row] for row in range(len(adapters))]

    def _is_together(self, adapter: str | None) -> bool:
        return self._together is not None and (adapter is None or adapter not in self._alone)
