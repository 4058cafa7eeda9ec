"""Models small enough to be saved a thousand times."""

from __future__ import annotations

import pytest
import torch

from loquela.models.base import Network, architecture, config_from_dict
from loquela.text.tokenizer import Tokenizer

CONFIGS = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "llama": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
}


def tiny(model_type: str = "llama", seed: int = 0, **settings: object) -> Network:
    """A network with scrambled weights."""
    config = config_from_dict({"model_type": model_type, "vocab_size": 300, **CONFIGS[model_type], **settings})
    torch.manual_seed(seed)
    network: Network = architecture(model_type).NETWORK(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.3)
    return network


@pytest.fixture(scope="session")
def make() -> object:
    return tiny


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train("byte", [], special_tokens=("<|endoftext|>", "<s>"))
