"""Small random models of every kind, large enough to have opinions."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

from loquela.api import LanguageModel
from loquela.models.base import Network, architecture, config_from_dict
from loquela.text.tokenizer import Tokenizer

TEXT = "The cat sat on the mat; the dog sat on the"
GAP = "The cat sat on the mat; the dog sat on the [MASK]"
_ROTARY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_PAIR = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 1,
}
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "llama": _ROTARY,
    "gemma2": {**_ROTARY, "head_dim": 8, "sliding_window": 8},
    "mixtral": {**_ROTARY, "num_local_experts": 4, "num_experts_per_tok": 2},
    "bert": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
    },
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
    "bart": _PAIR,
    "transformer": _PAIR,
    "rnn": {"hidden_size": 24},
    "lstm": {"hidden_size": 24},
    "ngram": {"order": 3},
    "ngram_residual": {"order": 3, "residual": {"model_type": "lstm", "hidden_size": 24}},
    "textgenrnn": {},
    "position_switch sinusoidal": {**_ROTARY, "position": "sinusoidal"},
    "position_switch learned": {**_ROTARY, "position": "learned"},
    "position_switch relative": {**_ROTARY, "position": "relative"},
    "position_switch alibi": {**_ROTARY, "position": "alibi"},
    "position_switch none": {**_ROTARY, "position": "none"},
}
MORE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("mistral", "olmo2", "phi3", "qwen2", "smollm3"), _ROTARY),
    "qwen3": {**_ROTARY, "head_dim": 8},
    "gemma3_text": {**_ROTARY, "head_dim": 8, "sliding_window": 8},
    "qwen3_moe": {**_ROTARY, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "marian": _PAIR,
    "mbart": _PAIR,
    "mt5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
}
"""Variations of those above, for what a variation can break: sums that must come out."""
Make = Callable[[str], LanguageModel]


@cache
def tokenizer_of() -> Tokenizer:
    special = ("<pad>", "<s>", "</s>", "[MASK]")
    found = Tokenizer.train(
        "bpe", ["The cat sat on the mat; the dog sat on the log.\n" * 20], 300, special_tokens=special
    )
    found.roles["mask"] = "[MASK]"
    return found


@cache
def model_of(name: str) -> LanguageModel:
    model_type, tokenizer = name.split()[0], tokenizer_of()
    raw = {"model_type": model_type, "vocab_size": tokenizer.vocab_size, **(SHAPES | MORE)[name]}
    network: Network = architecture(model_type).NETWORK(config_from_dict(raw))
    network.initialise()
    if hasattr(network, "fit"):
        network.fit(np.array(tokenizer.encode("The cat sat on the mat; the dog sat on the log.\n" * 20)))
    else:
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(
                    (0.2 if parameter.dim() > 1 else 0.05) * torch.randn(parameter.shape, generator=generator)
                )
    return LanguageModel(network, tokenizer)
