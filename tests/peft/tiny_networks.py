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
_EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
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
    "distilbert": {"dim": 24, "hidden_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 48},
    "gemma2": {**_LLAMA, "head_dim": 6, "sliding_window": 6, "query_pre_attn_scalar": 6},
    "gru": {"hidden_size": 24},
    "marian": {**_BART, "decoder_start_token_id": 0},
    "mbart": {**_BART, "decoder_start_token_id": 0},
    "mistral": {**_LLAMA, "sliding_window": 5},
    "mt5": {"d_model": 24, "d_kv": 6, "d_ff": 32, "num_layers": 2, "num_heads": 4},
    "position_switch": {**_LLAMA, "position": "alibi"},
    "qwen2": _LLAMA,
    "qwen2_moe": {**_LLAMA, **_EXPERTS, "shared_expert_intermediate_size": 8},
    "qwen3_moe": {**_LLAMA, **_EXPERTS},
    "rnn": {"hidden_size": 24},
    "roberta": {**_BERT, "max_position_embeddings": 50},
    "smollm3": _LLAMA,
    "transformer": {**_BART, "decoder_start_token_id": 0},
}
USUAL = "gpt2 llama qwen3 phi3 gemma3_text mixtral bert t5 bart lstm".split()
"""One of each way of being built: fused and not, tied and not, with windows, experts, an encoder, a state; the rest
are only tried where there is time."""


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
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def scramble(parameters: dict[str, torch.nn.Parameter], scale: float = 0.2) -> None:
    """Move an adapter away from its start, so that nothing of it can be left out unseen."""
    with torch.no_grad():
        for index, parameter in enumerate(parameters.values()):
            parameter += scale * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
