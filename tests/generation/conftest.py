"""Small random networks and a tokenizer: large enough to have opinions, small enough for hundreds of runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loquela.layers.cache import Cache
from loquela.models.base import Network, architecture
from loquela.text.tokenizer import Tokenizer

LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 48,
    "tie_word_embeddings": False,
}
GPT2 = {"n_positions": 48, "n_embd": 32, "n_layer": 2, "n_head": 4}


def make(model_type: str, vocab_size: int, **fields: object) -> Network:
    module = architecture(model_type)
    config = module.CONFIG.from_dict({"model_type": model_type, "vocab_size": vocab_size, **fields})
    network: Network = module.NETWORK(config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25, generator=generator)
    return network.eval()


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    text = "The cat sat on the mat; the dog sat on the log. ¿Qué? Ärger, 猫と犬 🐈🐕.\n" * 20
    return Tokenizer.train("bpe", [text], 320)


@pytest.fixture(scope="session", params=["llama", "gpt2"])
def network(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> Network:
    fields = LLAMA if request.param == "llama" else GPT2
    return make(request.param, tokenizer.vocab_size, **fields)


@pytest.fixture(scope="session")
def llama(tokenizer: Tokenizer) -> Network:
    return make("llama", tokenizer.vocab_size, **LLAMA)


class Script(Network):
    """A network that knows one text by heart: after position i comes token i + 1 of it, almost surely."""

    vocab_size, context_length, dim = 320, 200, 1

    def __init__(self, script: Sequence[int]) -> None:
        super().__init__()
        self.script = torch.tensor([*script, 0])
        self.unused = nn.Parameter(torch.zeros(1))

    def hidden(self, tokens: Tensor, *, cache: Cache | None = None, padding: Tensor | None = None) -> Tensor:
        assert cache is not None
        start = cache.length
        nothing = tokens[:, None, :, None].float()
        cache.layers[0].extend(nothing, nothing)
        where = torch.arange(start, start + tokens.shape[1]).clamp_max(len(self.script) - 2)
        return self.script[where + 1][None, :, None].float()

    def head(self, hidden: Tensor) -> Tensor:
        return 30 * F.one_hot(hidden.long().squeeze(-1), self.vocab_size).float()

    def new_cache(self) -> Cache:
        return Cache(1)

    def initialise(self) -> None: ...


@pytest.fixture(scope="session")
def script() -> Callable[[Sequence[int]], Network]:
    return Script
