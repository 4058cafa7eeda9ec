"""Small random models with clear opinions, for the tests of this room."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from loquela.checkpoint.sentence import Pooling
from loquela.models.base import Network, architecture
from loquela.text.tokenizer import Tokenizer

TEXT = "The cat sat on the mat; the dog sat on the log. Question: what? Answer: yes or no. Ärger, 猫と犬 🐈.\n" * 20
FIELDS: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    },
    "gpt2": {"n_positions": 256, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "lstm": {"hidden_size": 24, "num_hidden_layers": 2},
    "t5": {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
        "decoder_start_token_id": 0,
    },
    "bert": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 128,
    },
}


@dataclass
class Model:
    """What `loquela.load` would give."""

    network: Network
    tokenizer: Tokenizer
    pooling: Pooling | None = None
    end_ids: frozenset[int] = field(default_factory=frozenset)


def make(model_type: str, tokenizer: Tokenizer, seed: int = 5, **fields: Any) -> Model:
    """Return a random network with weights large enough for clear opinions."""
    module = architecture(model_type)
    raw = {"model_type": model_type, "vocab_size": tokenizer.vocab_size, **FIELDS[model_type], **fields}
    network: Network = module.NETWORK(module.CONFIG.from_dict(raw))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25, generator=generator)
    return Model(network.eval(), tokenizer)
