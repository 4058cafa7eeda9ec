"""The recurrent language model (Elman, 1990; Mikolov et al., 2010): one state, rewritten at every token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from loquela.errors import ConfigError, UsageError
from loquela.layers.cache import Cache
from loquela.layers.recurrent import Recurrent, StateCache
from loquela.models.base import Config, Network, Rename


@dataclass
class RNNConfig(Config):
    """config.json of a recurrent network; there is none of its kind in transformers."""

    model_type: ClassVar[str] = "rnn"
    hf_architecture: ClassVar[str] = "RNNForCausalLM"

    vocab_size: int = 256
    embedding_size: int | None = None
    hidden_size: int = 256
    num_hidden_layers: int = 2
    hidden_dropout_prob: float = 0.0
    tie_word_embeddings: bool = False

    def check(self) -> None:
        """The embedding is as wide as the state unless said otherwise; it must be where it is the head as well."""
        super().check()
        if self.embedding_size is None:
            self.embedding_size = self.hidden_size
        if not isinstance(self.embedding_size, int) or self.embedding_size < 1:
            raise ConfigError(f"embedding_size must be a positive whole number, but is {self.embedding_size!r}")
        if self.tie_word_embeddings and self.embedding_size != self.hidden_size:
            raise ConfigError(
                "embedding_size must be hidden_size where tie_word_embeddings is true, "
                f"but is {self.embedding_size} and not {self.hidden_size}"
            )


class RNN(Network):
    """Embedding, recurrent layers, head."""

    kernel: ClassVar[type[nn.RNN] | type[nn.LSTM] | type[nn.GRU]] = nn.RNN

    config: RNNConfig
    renames: ClassVar[tuple[Rename, ...]] = (
        ("token_embedding", "token_embedding"),
        ("recurrent.cells", "recurrent.cells"),
        ("lm_head", "lm_head"),
    )

    def __init__(self, config: RNNConfig) -> None:
        super().__init__()
        self.config = config
        assert config.embedding_size is not None
        self.token_embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        self.recurrent = Recurrent(
            self.kernel, config.embedding_size, config.hidden_size, config.num_hidden_layers, config.hidden_dropout_prob
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.token_embedding.weight

    @property
    def vocab_size(self) -> int:  # noqa: D102
        return self.config.vocab_size

    @property
    def context_length(self) -> int:
        """A state has no window; this is what may be read or written in one go, bounded by memory only."""
        return 2**20

    @property
    def dim(self) -> int:  # noqa: D102
        return self.config.hidden_size

    def hidden(self, tokens: Tensor, *, cache: Cache | None = None, padding: Tensor | None = None) -> Tensor:  # noqa: D102
        if not (cache is None or isinstance(cache, StateCache)):
            raise UsageError(f"a recurrent network keeps a state: make its cache with `new_cache`, not a {type(cache)}")
        x = self.dropout(self.token_embedding(tokens))
        return self.dropout(self.recurrent(x, cache=cache, padding=padding))  # type: ignore[no-any-return]

    def head(self, hidden: Tensor) -> Tensor:  # noqa: D102
        return self.lm_head(hidden)  # type: ignore[no-any-return]

    def new_cache(self) -> Cache:  # noqa: D102
        return StateCache()

    def initialise(self) -> None:
        """U(±1/√state) for matrices, zero for biases, N(0, 1) for an embedding that is not the head as well."""
        bound = self.config.hidden_size**-0.5
        for parameter in self.parameters():
            if parameter.dim() == 1:
                nn.init.zeros_(parameter)
            else:
                nn.init.uniform_(parameter, -bound, bound)
        if not self.config.tie_word_embeddings:
            nn.init.normal_(self.token_embedding.weight)


CONFIG, NETWORK = RNNConfig, RNN
