"""The n-gram model: counts of what followed the last few words, smoothed after Kneser and Ney (1995)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from loquela.errors import ConfigError, DataError, UsageError
from loquela.layers.cache import Cache
from loquela.layers.counts import NGramCounts, count
from loquela.layers.masks import real_first
from loquela.layers.recurrent import StateCache
from loquela.models.base import Config, Network, Rename


@dataclass
class NGramConfig(Config):
    """config.json of an n-gram model; there is none of its kind in transformers."""

    model_type: ClassVar[str] = "ngram"
    hf_architecture: ClassVar[str] = "NGramForCausalLM"

    vocab_size: int = 256
    order: int = 5
    """Tokens of the longest n-gram, the predicted one included."""
    counted: list[int] = field(default_factory=list)
    """How many different n-grams of each order from 2 on were counted; `fit` sets it."""

    def check(self) -> None:
        """Before `fit` nothing is counted; afterwards every order from 2 on has its number."""
        super().check()
        self.counted = self.counted or [0] * (self.order - 1)
        if len(self.counted) != self.order - 1 or not all(type(n) is int and 0 <= n < 2**31 for n in self.counted):
            raise ConfigError(
                f"counted must have a whole number for each order from 2 to {self.order}, but is {self.counted}"
            )


class NGram(Network):
    """Counts and the formula that smooths them: nothing is learnt by gradient, `fit` counts a text.

    Its hidden state is which histories it has seen: the numbers (…, order - 1) of the last 1, 2, … tokens as n-grams,
    -1 where there is none. Its head turns them into log-probabilities.
    """

    config: NGramConfig
    renames: ClassVar[tuple[Rename, ...]] = (("levels.*", "levels.*"),)

    def __init__(self, config: NGramConfig) -> None:
        super().__init__()
        self.config = config
        self.levels = nn.ModuleList(NGramCounts(n, config.vocab_size) for n in (config.vocab_size, *config.counted))

    @property
    def vocab_size(self) -> int:  # noqa: D102
        return self.config.vocab_size

    @property
    def context_length(self) -> int:
        """How far it looks back is its order; this is what may be read or written in one go, bounded by memory only."""
        return 2**20

    @property
    def dim(self) -> int:
        """Numbers in a hidden state."""
        return self.config.order - 1

    @property
    def _orders(self) -> list[NGramCounts]:
        return cast(list[NGramCounts], list(self.levels))

    def fit(self, tokens: npt.NDArray[np.integer]) -> None:
        """Count a text (n,), in place of what was counted before; raises `DataError` for one that is too short."""
        order, vocab_size = self.config.order, self.config.vocab_size
        if len(tokens) < order:
            raise DataError(f"a text must have at least the {order} tokens of an n-gram, but has {len(tokens)}")
        if int(tokens.max()) >= vocab_size:
            raise DataError(f"token ids must be below the vocabulary of {vocab_size}, but reach {tokens.max()}")
        for level, (keys, counts) in zip(self._orders, count(tokens, order, vocab_size), strict=True):
            level.fill(keys, counts)
        self.config.counted = [len(level.keys) for level in self._orders[1:]]

    def hidden(self, tokens: Tensor, *, cache: Cache | None = None, padding: Tensor | None = None) -> Tensor:  # noqa: D102
        if not (cache is None or isinstance(cache, StateCache)):
            raise UsageError(f"an n-gram model keeps a state: make its cache with `new_cache`, not a {type(cache)}")
        batch, seq = tokens.shape
        real = torch.ones_like(tokens, dtype=torch.bool) if padding is None else padding[:, -seq:]
        order, back = real_first(real)
        words = tokens.gather(1, order)
        known = None if cache is None else cache.state
        before = tokens.new_full((batch, self.dim), -1) if known is None else known[0][0]
        parent, numbers = torch.zeros_like(words), []
        for k, level in enumerate(self._orders[:-1]):
            numbers.append(level.find(parent, words))
            parent = torch.cat((before[:, k : k + 1], numbers[-1][:, :-1]), 1)
        states = torch.stack(numbers, -1) if numbers else before.new_empty(batch, seq, 0)
        if cache is not None:
            path = torch.cat((before[:, None], states), 1)  # the state after 0, 1, … real tokens
            cache.advance((path[torch.arange(batch, device=path.device), real.sum(1)][None],), seq)
        return states.gather(1, back[..., None].expand_as(states))

    def raised(self, tokens: Tensor, states: Tensor) -> Tensor:
        """Return the n-grams (batch, seq, order) of each order that the next token of each place raised the count of.

        They are numbers, -1 for none, where `tokens` (batch, seq) were in the text that was counted and `states` are
        their hidden ones. A shorter n-gram counts once for each different word before it, so it was raised where the
        longer one is met here only. The token after the last place is not known.
        """
        after = torch.cat((tokens[:, 1:], torch.full_like(tokens[:, :1], -1)), 1)
        root, once, found = torch.zeros_like(after), after >= 0, []
        for level, parent in zip(self._orders[::-1], (*states.unbind(-1)[::-1], root), strict=True):
            found.append(torch.where(once, level.find(parent, after), -1))
            once = once & ((found[-1] < 0) | (level.counts[found[-1]] == 1))
        return torch.stack(found[::-1], -1)

    def head(self, hidden: Tensor, without: Tensor | None = None) -> Tensor:
        """Return the log-probabilities (…, vocab_size) after each history; they are logits that need no softmax.

        `without` (…, order) are n-grams that count once less there; see `raised`.
        """
        rows = hidden.reshape(math.prod(hidden.shape[:-1]), self.dim)
        root = rows.new_zeros(1 if without is None else len(rows))
        less = [None] * self.config.order if without is None else without.reshape(len(rows), -1).unbind(1)
        p = torch.full((1, self.vocab_size), 1 / self.vocab_size, device=rows.device)
        for level, parent, gone in zip(self._orders, (root, *rows.unbind(1)), less, strict=True):
            p = level.smooth(p, parent.contiguous(), gone)
        return p.log().expand(len(rows), -1).reshape(*hidden.shape[:-1], self.vocab_size)

    def new_cache(self) -> Cache:  # noqa: D102
        return StateCache()

    def initialise(self) -> None:
        """Forget all counts: every token is equally likely."""
        self.config.counted = [0] * (self.config.order - 1)
        for level, size in zip(self._orders, (self.vocab_size, *self.config.counted), strict=True):
            level.fill(np.arange(size), np.zeros(size, dtype=np.int64))


CONFIG, NETWORK = NGramConfig, NGram
