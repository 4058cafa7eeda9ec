"""Small random networks with opinions, and a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from loquela.engine.scheduler import Scheduler
from loquela.engine.terms import Limits
from loquela.models.base import Network, architecture
from loquela.text.tokenizer import Tokenizer

FIELDS: dict[str, dict[str, object]] = {
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 400,
        "tie_word_embeddings": False,
    },
    "gpt2": {"n_positions": 400, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "lstm": {"embedding_dim": 24, "hidden_size": 32, "num_layers": 2, "max_position_embeddings": 400},
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
}


def make(model_type: str, vocab_size: int) -> Network:
    module = architecture(model_type)
    known = {f for f in FIELDS[model_type] if f in module.CONFIG.__dataclass_fields__}
    fields = {name: FIELDS[model_type][name] for name in known}
    network: Network = module.NETWORK(
        module.CONFIG.from_dict({"model_type": model_type, "vocab_size": vocab_size, **fields})
    )
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


@pytest.fixture(scope="session")
def llama(tokenizer: Tokenizer) -> Network:
    return make("llama", tokenizer.vocab_size)


@pytest.fixture(scope="session", params=sorted(FIELDS))
def network(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> Network:
    return make(request.param, tokenizer.vocab_size)


@pytest.fixture
def serve(tokenizer: Tokenizer) -> Iterator[Callable[..., Scheduler]]:
    """Start a scheduler that is closed after the test."""
    started = []

    def start(network: Network, **limits: int) -> Scheduler:
        started.append(Scheduler(network, tokenizer, Limits(**limits)))
        return started[-1]

    yield start
    for scheduler in started:
        scheduler.close()
