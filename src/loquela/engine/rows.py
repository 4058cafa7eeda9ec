"""Several requests through one network, each computed as it would be alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from loquela.generation.decode import evaluating
from loquela.generation.rules import Logits
from loquela.layers.cache import Cache
from loquela.models.base import Network

__all__ = ["Rows", "Wear"]

Wear = Callable[[str | None], AbstractContextManager[object]]
"""Lets the network wear an adapter (None: none) for as long as the context lasts."""


class _Together(Protocol):
    """A network that takes many rows at once and promises each what it would get alone."""

    def hidden_rows(self, tokens: Sequence[Sequence[int]], caches: Sequence[Cache]) -> list[Tensor]: ...

    def logits_rows(self, hidden: Tensor) -> Iterable[Any]: ...


class Rows:
    """Runs rows of tokens, each after its own cache, with its own adapter.

    A `compiled` form of the network (`loquela.engine.decoder`) reads its weights once for all rows; it runs those that
    wear nothing. PyTorch's products give other bits for other shapes, so there each row is computed by itself.
    """

    def __init__(self, network: Network, wear: Wear | None = None, compiled: Network | None = None) -> None:
        self.network = network
        self._wear = wear or (lambda name: nullcontext())
        self._compiled = compiled
        self._device = next((p.device for p in network.parameters()), torch.device("cpu"))

    def window(self, adapter: str | None) -> int:
        """Return the context window that an adapter leaves: a soft prompt takes up a part of it."""
        with self._wear(adapter):
            return self.network.context_length

    def start(self, prompt: Sequence[int], adapter: str | None) -> tuple[Cache, list[int]]:
        """Return a cache, and the first tokens to read; see `Network.start`."""
        network = self._of(adapter)
        with evaluating(network), self._wear(adapter):
            cache, first = network.start(torch.tensor([prompt], device=self._device))
        return cache, first[0].tolist()

    def hidden(
        self, tokens: Sequence[Sequence[int]], caches: Sequence[Cache], adapters: Sequence[str | None]
    ) -> list[Tensor]:
        """Return the hidden states (new, dim) of each row's `tokens`, and extend its cache."""
        found: list[Tensor] = [torch.empty(0)] * len(tokens)
        for name in dict.fromkeys(adapters):
            rows = [row for row, worn in enumerate(adapters) if worn == name]
            with evaluating(self.network), self._wear(name):
                if (together := self._together(name)) is not None:
                    hidden = together.hidden_rows([tokens[row] for row in rows], [caches[row] for row in rows])
                else:
                    hidden = [self._alone(tokens[row], caches[row]) for row in rows]
            for row, states in zip(rows, hidden, strict=True):
                found[row] = states
        return found

    def logits(self, hidden: Sequence[Tensor], adapters: Sequence[str | None]) -> list[Logits]:
        """Return the logits (vocab,) of each hidden state (dim,)."""
        found: list[Logits] = [np.empty(0)] * len(hidden)
        for name in dict.fromkeys(adapters):
            rows = [row for row, worn in enumerate(adapters) if worn == name]
            with evaluating(self.network), self._wear(name):
                if (together := self._together(name)) is not None:
                    several = together.logits_rows(torch.stack([hidden[row] for row in rows]))
                    logits = [np.asarray(row, dtype=np.float64) for row in several]
                else:
                    logits = [self.network.head(hidden[row]).double().cpu().numpy() for row in rows]
            for row, values in zip(rows, logits, strict=True):
                found[row] = values
        return found

    def _of(self, adapter: str | None) -> Network:
        return self._compiled if adapter is None and self._compiled is not None else self.network

    def _together(self, adapter: str | None) -> _Together | None:
        """The network of those who wear `adapter`, if it takes many rows at once."""
        network = self._of(adapter)
        return cast(_Together, network) if hasattr(type(network), "hidden_rows") else None

    def _alone(self, tokens: Sequence[int], cache: Cache) -> Tensor:
        return self.network.hidden(torch.tensor([tokens], device=self._device), cache=cache)[0]
