"""textgenrnn (Woolf, 2017): LSTMs over a short window of characters, and a weighted average of all they made of it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from loquela.errors import UsageError
from loquela.layers.cache import Cache
from loquela.layers.masks import real_first
from loquela.layers.recurrent import Recurrent, StateCache
from loquela.models.base import Config, Network, Rename

_ROWS = 1024  # windows side by side: each token has one of its own, so a long text would fill the memory
_NOTHING = 0  # stands where a window reaches beyond the beginning


@dataclass
class TextGenRNNConfig(Config):
    """config.json of a textgenrnn model; there is none of its kind in transformers."""

    model_type: ClassVar[str] = "textgenrnn"
    hf_architecture: ClassVar[str] = "TextGenRNNForCausalLM"

    vocab_size: int = 465
    embedding_size: int = 100
    hidden_size: int = 128
    num_hidden_layers: int = 2
    window: int = 40


class TextGenRNN(Network):
    """Reads the last `window` tokens anew for each prediction; what it remembers of a text is these tokens."""

    config: TextGenRNNConfig
    renames: ClassVar[tuple[Rename, ...]] = tuple(
        (name, name) for name in ("token_embedding", "layers.*", "attention", "lm_head")
    )

    def __init__(self, config: TextGenRNNConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.embedding_size, *[config.hidden_size] * config.num_hidden_layers]
        self.token_embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        self.layers = nn.ModuleList(Recurrent(nn.LSTM, below, width, 1, 0.0) for below, width in pairwise(widths))
        self.attention = nn.Linear(sum(widths), 1, bias=False)
        self.lm_head = nn.Linear(sum(widths), config.vocab_size)

    @property
    def vocab_size(self) -> int:  # noqa: D102
        return self.config.vocab_size

    @property
    def context_length(self) -> int:
        """The window slides; this is what may be read or written in one go, bounded by memory only."""
        return 2**20

    @property
    def dim(self) -> int:  # noqa: D102
        return self.lm_head.in_features

    def hidden(self, tokens: Tensor, *, cache: Cache | None = None, padding: Tensor | None = None) -> Tensor:  # noqa: D102
        if not (cache is None or isinstance(cache, StateCache)):
            raise UsageError(f"textgenrnn keeps its window: make its cache with `new_cache`, not a {type(cache)}")
        batch, seq = tokens.shape
        real = torch.ones_like(tokens, dtype=torch.bool) if padding is None else padding[:, -seq:]
        order, back = real_first(real)
        known = None if cache is None else cache.state
        before = tokens.new_full((batch, self.config.window - 1), _NOTHING) if known is None else known[0][0]
        text = torch.cat((before, tokens.gather(1, order)), 1)
        windows = text.unfold(1, self.config.window, 1)  # (batch, seq, window)
        y = torch.cat([self._read(part) for part in torch.split(windows.flatten(0, 1), _ROWS)]).view(batch, seq, -1)
        if cache is not None:
            last = real.sum(1, keepdim=True) + torch.arange(self.config.window - 1, device=tokens.device)
            cache.advance((text.gather(1, last)[None],), seq)
        return y.gather(1, back[..., None].expand_as(y))

    def _read(self, windows: Tensor) -> Tensor:
        x = self.token_embedding(windows)
        made = [x]
        for layer in self.layers:
            made.append(layer(made[-1]))
        y = torch.cat(made, -1)  # (rows, window, dim)
        weights: Tensor = self.attention(y).softmax(1)
        return (y * weights).sum(1)

    def head(self, hidden: Tensor) -> Tensor:  # noqa: D102
        return self.lm_head(hidden)  # type: ignore[no-any-return]

    def new_cache(self) -> Cache:  # noqa: D102
        return StateCache()

    def initialise(self) -> None:
        """U(±1/√state) for matrices, zero for biases, N(0, 1) for the embedding."""
        bound = self.config.hidden_size**-0.5
        for parameter in self.parameters():
            if parameter.dim() == 1:
                nn.init.zeros_(parameter)
            else:
                nn.init.uniform_(parameter, -bound, bound)
        nn.init.normal_(self.token_embedding.weight)


CONFIG, NETWORK = TextGenRNNConfig, TextGenRNN
