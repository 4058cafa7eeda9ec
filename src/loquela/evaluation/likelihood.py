"""Log-probabilities of continuations: each item by itself in torch, many items together in the compiled engine.

PyTorch's matrix products give a row other bits in another batch, so there an item is computed alone. The compiled
engine sums each number in an order that the weights' shapes decide: there items share a reading of the weights, no
neighbour changes a bit, and no row is padded to the length of another. Either way a context is read once for all its
continuations, a prefix once for all contexts, and the head sees only positions whose token counts.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from loquela.evaluation.subject import Likelihood
from loquela.layers.cache import Cache
from loquela.models.base import Network

if TYPE_CHECKING:
    from loquela.engine.decoder import CompiledNetwork

__all__ = ["SHARED", "TOKENS", "Alone", "Encoded", "Together"]

SHARED = 16  # tokens from which on it pays to keep a prefix
_KEPT = 2  # prefixes whose caches are kept
TOKENS = 4096  # to read together, as far as their caches take no more than the next number of bytes
_CACHE_BYTES = 1 << 27
_HEAD_ROWS = 64  # positions whose logits are


@dataclass(frozen=True)
class Encoded:
    """A context `ids`, of which the first `shared` are a prefix worth keeping (or 0), and its continuations."""

    ids: list[int]
    rows: list[list[int]]
    shared: int = 0

    @property
    def tokens(self) -> int:
        """What is to be read where the prefix is known: the last token of a continuation is only predicted."""
        return len(self.ids) - self.shared + sum(len(row) - 1 for row in self.rows)


class _Prefixes:
    """The caches of the prefixes that were asked for last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, ...], Cache] = OrderedDict()

    def copy(self, ids: Sequence[int], read: Callable[[Sequence[int]], Cache]) -> Cache:
        """Return a copy of the cache that has read `ids`, which `read` does where it is not kept."""
        key = tuple(ids)
        if key not in self._kept:
            self._kept[key] = read(ids)
        self._kept.move_to_end(key)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return copy.deepcopy(self._kept[key])

    def clear(self) -> None:
        """Drop all."""
        self._kept.clear()


class Alone:
    """Computes one item at a time, in torch; any network that writes."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.prefixes = _Prefixes()

    def __call__(self, item: Encoded) -> list[Likelihood]:
        """Return how the continuations are expected."""
        if len(item.rows) == 1 and self.network.kind == "decoder":
            return [self._single(item)]
        return self._side_by_side(item)

    def _single(self, item: Encoded) -> Likelihood:
        """Context and continuation in one go."""
        cache, first = self._begin(item)
        inputs = torch.cat([first, self._tensor([item.rows[0][:-1]])], dim=1)
        hidden = self.network.hidden(inputs, cache=cache)[0, first.shape[1] - 1 :]
        return _likelihood(self.network.head(hidden), self._tensor(item.rows[0]))

    def _side_by_side(self, item: Encoded) -> list[Likelihood]:
        """The context once, then the continuations as rows of one batch; what fills them up stands behind, unseen."""
        rows = item.rows
        cache, first = self._begin(item)
        cache = self.network.new_cache() if cache is None else cache
        last = self.network.hidden(first, cache=cache)[:, -1:]  # (1, 1, D): what all first tokens are predicted from
        longer = [i for i, row in enumerate(rows) if len(row) > 1]
        hidden: dict[int, Tensor] = dict.fromkeys(range(len(rows)), last[0])
        if longer:
            width = max(len(rows[i]) for i in longer) - 1
            cache.select(torch.zeros(len(longer), dtype=torch.int64, device=last.device))
            inputs = self._tensor([rows[i][:-1] + [0] * (width + 1 - len(rows[i])) for i in longer])
            found = self.network.hidden(inputs, cache=cache)
            for n, i in enumerate(longer):
                hidden[i] = torch.cat([last[0], found[n, : len(rows[i]) - 1]])
        logits = self.network.head(torch.cat([hidden[i] for i in range(len(rows))]))  # (all tokens, V)
        parts = torch.split(logits, [len(row) for row in rows])
        return [_likelihood(part, self._tensor(row)) for part, row in zip(parts, rows, strict=True)]

    def _begin(self, item: Encoded) -> tuple[Cache | None, Tensor]:
        """Return the cache that holds what is known of the context, and the tokens that are still to be read."""
        if self.network.kind == "encoder-decoder":
            return self.network.start(self._tensor([item.ids]))
        if not item.shared:
            return None, self._tensor([item.ids])
        cache = self.prefixes.copy(item.ids[: item.shared], self._read)
        return cache, self._tensor([item.ids[item.shared :]])

    def _read(self, ids: Sequence[int]) -> Cache:
        cache = self.network.new_cache()
        self.network.hidden(self._tensor([ids]), cache=cache)
        return cache

    def _tensor(self, ids: Sequence[Any]) -> Tensor:
        return torch.tensor(ids, dtype=torch.int64, device=next(self.network.parameters()).device)


class Together:
    """Computes many items at a time, through a compiled network that wears one adapter or none."""

    def __init__(self, network: CompiledNetwork, adapter: str | None = None) -> None:
        self.of = network, adapter
        self._network = network
        self.prefixes = _Prefixes()

    @property
    def room(self) -> int:
        """How many tokens' caches fit the memory that is meant for them."""
        from loquela.engine.pages import POSITIONS  # with Numba, which a compiled network has imported

        return max(1, _CACHE_BYTES * POSITIONS // self._network.page_bytes)

    def __call__(self, items: Sequence[Encoded]) -> list[list[Likelihood]]:
        """Return how the continuations of each item are expected."""
        hidden = self._hidden(items)
        rows = [row for item in items for row in item.rows]
        tokens = np.array([token for row in rows for token in row])
        log_probs, greedy = self._look(torch.cat(hidden), tokens)
        ends = np.cumsum([len(row) for row in rows])
        found = iter(
            Likelihood(float(log_probs[end - len(row) : end].sum()), len(row), bool(greedy[end - len(row) : end].all()))
            for row, end in zip(rows, ends.tolist(), strict=True)
        )
        return [[next(found) for _ in item.rows] for item in items]

    def _hidden(self, items: Sequence[Encoded]) -> list[Tensor]:
        """Return what each row's tokens are predicted from (its tokens, D), item by item."""
        caches, begun = zip(*(self._begin(item) for item in items), strict=True)
        alone = [len(item.rows) == 1 for item in items]  # context and continuation in one go
        first = [
            ids + (item.rows[0][:-1] if single else []) for item, ids, single in zip(items, begun, alone, strict=True)
        ]
        wanted = [len(item.rows[0]) if single else 1 for item, single in zip(items, alone, strict=True)]
        read = self._network.hidden_rows(first, caches, wanted=wanted)
        found: list[list[Tensor]] = []
        branches: list[tuple[int, list[int], Cache]] = []
        for number, (item, last, cache, single) in enumerate(zip(items, read, caches, alone, strict=True)):
            found.append([last] * len(item.rows))
            if not single:
                longer = [row for row in item.rows if len(row) > 1]
                branches += [(number, row[:-1], copy.deepcopy(cache)) for row in longer]
        if branches:
            _, tokens, forks = zip(*branches, strict=True)
            further = iter(self._network.hidden_rows(tokens, forks))
            for number in dict.fromkeys(number for number, _, _ in branches):
                for i, row in enumerate(items[number].rows):
                    if len(row) > 1:
                        found[number][i] = torch.cat([found[number][i], next(further)])
        return [states for of_item in found for states in of_item]

    def _begin(self, item: Encoded) -> tuple[Cache, list[int]]:
        """Return the cache that holds what is known of the context, and the tokens that are still to be read."""
        if self._network.kind == "encoder-decoder":
            source, first = self._network.start(torch.tensor([item.ids]))
            return source, first[0].tolist()
        if not item.shared:
            return self._network.new_cache(), item.ids
        return self.prefixes.copy(item.ids[: item.shared], self._read), item.ids[item.shared :]

    def _read(self, ids: Sequence[int]) -> Cache:
        cache = self._network.new_cache()
        self._network.hidden_rows([ids], [cache], wanted=[0])
        return cache

    def _look(
        self, hidden: Tensor, tokens: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Return the log-probability of each of `tokens` (n,) after `hidden` (n, dim), and whether it is the likeliest.

        Everything is done within a row of logits, so that it does not depend on the others.
        """
        log_probs, greedy = np.empty(len(tokens)), np.empty(len(tokens), dtype=np.bool_)
        for start in range(0, len(tokens), _HEAD_ROWS):
            part = slice(start, min(start + _HEAD_ROWS, len(tokens)))
            logits = self._network.logits_rows(hidden[part])
            most = logits.max(axis=1)
            wide = np.exp(logits - most[:, None]).astype(np.float64)
            chosen = logits[np.arange(len(logits)), tokens[part]]
            log_probs[part] = chosen.astype(np.float64) - most - np.log(wide.sum(axis=1))
            greedy[part] = logits.argmax(axis=1) == tokens[part]
        return log_probs, greedy


def _likelihood(logits: Tensor, tokens: Tensor) -> Likelihood:
    """Sum up the log-probabilities of `tokens` (n,) under `logits` (n, vocab)."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    chosen = logits.gather(-1, tokens[:, None])[:, 0]
    log_probs = (chosen - logits.logsumexp(-1)).double()
    return Likelihood(float(log_probs.sum()), len(tokens), bool((logits.argmax(-1) == tokens).all()))
