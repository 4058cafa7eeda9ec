"""The neural n-gram model: a decoder that learns what counts leave open (Li et al., 2022, arXiv:2210.14431)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from loquela.errors import ConfigError, DataError, UsageError
from loquela.layers.cache import Cache
from loquela.layers.counts import Counting
from loquela.layers.recurrent import StateCache
from loquela.models.base import Network, Rename, architecture, config_from_dict
from loquela.models.ngram import NGram, NGramConfig

_EXACT = 2**24
"""Whole numbers below it are exact in float32, in which hidden states hold them."""


@dataclass
class NGramResidualConfig(NGramConfig):
    """config.json of an n-gram model with a decoder beside it; there is none of its kind in transformers."""

    model_type: ClassVar[str] = "ngram_residual"
    hf_architecture: ClassVar[str] = "NGramResidualForCausalLM"

    residual: dict[str, Any] = field(default_factory=lambda: {"model_type": "lstm"})
    """The decoder's config, with its `model_type`; its vocabulary is this one's."""

    def check(self) -> None:
        """The decoder must have a head of its own, since that begins at zero."""
        super().check()
        if not isinstance(self.residual, dict) or "model_type" not in self.residual:
            raise ConfigError(f"residual must be the config of a decoder with its model_type, but is {self.residual!r}")
        module = architecture(self.residual["model_type"])
        network, fields = module.NETWORK, module.CONFIG.__dataclass_fields__
        if network.kind != "decoder" or issubclass(network, Counting):
            raise ConfigError(f"residual must be a decoder that learns, but is {self.residual['model_type']!r}")
        raw = {"vocab_size": self.vocab_size, **self.residual}
        if "tie_word_embeddings" in fields:
            raw.setdefault("tie_word_embeddings", False)
        if raw["vocab_size"] != self.vocab_size:
            raise ConfigError(f"residual has {raw['vocab_size']} tokens, but must have the {self.vocab_size} beside it")
        if raw.get("tie_word_embeddings"):
            raise ConfigError(
                "residual must have tie_word_embeddings false, since its head begins at zero, but has true"
            )
        self.residual = config_from_dict(raw).to_dict()


class PairedCache(StateCache):
    """What both halves remember."""

    def __init__(self, residual: Cache) -> None:
        super().__init__()
        self.residual = residual

    def truncate(self, length: int) -> None:
        """Go back to the beginning; see `StateCache`."""
        super().truncate(length)
        self.residual.truncate(length)

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) the batch rows with indices `rows` (n,), in that order."""
        super().select(rows)
        self.residual.select(rows)


class Gate(nn.Module):
    """How much counts are trusted, by the decoder's state: `1 + weight · h`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, states: Tensor) -> Tensor:
        """Return (…, 1) for `states` (…, dim)."""
        return (1 + states @ self.weight)[..., None]


class NGramResidual(Network):
    """A decoder beside an n-gram model: `logits = head(h) + (1 + gate · h) log p`, p what the counts say.

    It begins as the n-gram model, since the decoder's head and the gate begin at zero, and learns by gradients what
    that gets wrong, and where to trust it. A text that was counted surprises the counts of itself less than any other
    would. So while it is learnt from, each token counts once less where it is predicted (but after the last place of
    a row, since it is not in the row). That is so in the process that counted: a model that was loaded meets other
    texts.

    A hidden state holds the decoder's, then the histories as `NGram` numbers them, then the n-grams that count less.
    """

    config: NGramResidualConfig
    renames: ClassVar[tuple[Rename, ...]] = (("ngram", "ngram"), ("residual", "residual"), ("gate", "gate"))

    def __init__(self, config: NGramResidualConfig) -> None:
        super().__init__()
        self.config = config
        inner = config_from_dict(config.residual)
        self.ngram = NGram(NGramConfig(config.vocab_size, config.order, config.counted))
        self.residual: Network = architecture(inner.model_type).NETWORK(inner)
        self.gate = Gate(self.residual.dim)
        self._met = False

    @property
    def vocab_size(self) -> int:  # noqa: D102
        return self.config.vocab_size

    @property
    def context_length(self) -> int:
        """That of the decoder."""
        return self.residual.context_length

    @property
    def dim(self) -> int:
        """Numbers in a hidden state."""
        return self.residual.dim + 2 * self.config.order - 1

    @property
    def _learns_what_it_counted(self) -> bool:
        return self.training and self._met

    def fit(self, tokens: npt.NDArray[np.integer]) -> None:
        """Count a text (n,), in place of what was counted before; the decoder stays as it is."""
        self.ngram.fit(tokens)
        self.config.counted = self.ngram.config.counted
        if max(self.config.counted, default=0) >= _EXACT:
            raise DataError(
                f"there must be fewer than {_EXACT} different n-grams of each order, but there are "
                f"{max(self.config.counted)}: lower order, or count a shorter text"
            )
        self._met = True

    def hidden(self, tokens: Tensor, *, cache: Cache | None = None, padding: Tensor | None = None) -> Tensor:  # noqa: D102
        if not (cache is None or isinstance(cache, PairedCache)):
            raise UsageError(f"make the cache of this network with `new_cache`, not a {type(cache).__name__}")
        states = self.residual.hidden(tokens, cache=None if cache is None else cache.residual, padding=padding)
        numbers = self.ngram.hidden(tokens, cache=cache, padding=padding)
        if self._learns_what_it_counted:
            less = self.ngram.raised(tokens, numbers)
        else:
            less = numbers.new_full((*tokens.shape, self.config.order), -1)
        exact = torch.promote_types(states.dtype, torch.float32)
        return torch.cat((states.to(exact), numbers.to(exact), less.to(exact)), -1)

    def head(self, hidden: Tensor) -> Tensor:  # noqa: D102
        order = self.config.order
        states, numbers, less = torch.split(hidden, [self.residual.dim, order - 1, order], -1)
        with torch.no_grad():
            known = self.ngram.head(numbers.long(), less.long() if self._learns_what_it_counted else None)
        states = states.to(self.gate.weight.dtype)
        logits: Tensor = self.residual.head(states) + self.gate(states) * known
        return logits

    def new_cache(self) -> Cache:  # noqa: D102
        return PairedCache(self.residual.new_cache())

    def initialise(self) -> None:
        """The counts forget all, the decoder begins as always but for its head, which is zero."""
        self.ngram.initialise()
        self.config.counted = self.ngram.config.counted
        self.residual.initialise()
        head = getattr(self.residual, "lm_head", None)
        if not isinstance(head, nn.Linear):
            raise ConfigError(f"residual must have a linear head, but {self.residual.config.model_type} has none")
        for parameter in (self.gate.weight, *head.parameters()):
            nn.init.zeros_(parameter)


CONFIG, NETWORK = NGramResidualConfig, NGramResidual
