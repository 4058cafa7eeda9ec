"""Tiny networks of every shape that adapters are put on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from loquela.models.base import Network, architecture, config_from_dict
from loquela.models.encoder_only import EncoderOnly

VOCABULARY = 61
_LLAMA = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 48,
}
_BART = {
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "max_position_embeddings": 48,
}
_BERT = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 48,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 48},
    "llama": _LLAMA,
    "qwen3": {**_LLAMA, "head_dim": 6, "tie_word_embeddings": True},
    "phi3": _LLAMA,
    "gemma3_text": {**_LLAMA, "head_dim": 6, "sliding_window": 6, "query_pre_attn_scalar": 6},
    "mixtral": {**_LLAMA, "num_local_experts": 3},
    "bert": _BERT,
    "t5": {"d_model": 24, "d_kv": 6, "d_ff": 32, "num_layers": 2, "num_heads": 4},
    "bart": _BART,
    "lstm": {"hidden_size": 24},
}
"""One config for each way of being built: fused and not, tied and not, with windows, experts, an encoder, a state."""


def make(model_type: str, seed: int = 0, **settings: Any) -> Network:
    """A network with scrambled weights."""
    config = config_from_dict({"model_type": model_type, "vocab_size": VOCABULARY, **CONFIGS[model_type], **settings})
    torch.manual_seed(seed)
    network: Network = architecture(model_type).NETWORK(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.3)
    return network


def classifier(seed: int = 0) -> Network:
    """BERT with three labels."""
    network = make("bert", seed)
    assert isinstance(network, EncoderOnly)
    torch.manual_seed(seed)
    return network.for_task("text-classification", ("a", "b", "c")).eval()


def tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    """Token ids (rows, length)."""
    return torch.randint(1, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def scramble(parameters: dict[str, torch.nn.Parameter], scale: float = 0.2) -> None:
    """Move an adapter away from its start, so that nothing of it can be left out unseen."""
    with torch.no_grad():
        for index, parameter in enumerate(parameters.values()):
            parameter += scale * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
