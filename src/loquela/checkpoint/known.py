"""Shapes of well-known models, as their config.json has them, so that a size can be told by name.

Only what decides the shape is here. Those of `palm-2` and `gpt-4` were never published: each is a decoder in LLaMA's
form with as many parameters as is commonly said of it (340 billion, a trillion), and its note says so.
"""

from __future__ import annotations

from typing import Any

from loquela.errors import UsageError, nearest
from loquela.models.base import Config, config_from_dict

__all__ = ["NOTES", "known_config", "known_names"]


def _llama(
    dim: int, hidden: int, layers: int, heads: int, kv_heads: int, vocabulary: int, window: int, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": dim,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": window,
        **more,
    }


def _bert(dim: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "architectures": ["BertForMaskedLM"],
        "vocab_size": 30522,
        "hidden_size": dim,
        "intermediate_size": 4 * dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


def _gpt2(dim: int, layers: int, heads: int) -> dict[str, Any]:
    return {"model_type": "gpt2", "n_embd": dim, "n_layer": layers, "n_head": heads}


def _t5(dim: int, hidden: int, layers: int, heads: int, kv: int = 64) -> dict[str, Any]:
    return {
        "model_type": "t5",
        "d_model": dim,
        "d_ff": hidden,
        "num_layers": layers,
        "num_heads": heads,
        "d_kv": kv,
        "vocab_size": 32128,
    }


def _bart(dim: int, layers: int, heads: int) -> dict[str, Any]:
    side = {"layers": layers, "attention_heads": heads, "ffn_dim": 4 * dim}
    both = {f"{which}_{key}": value for which in ("encoder", "decoder") for key, value in side.items()}
    return {"model_type": "bart", "d_model": dim, "vocab_size": 50265, **both}


_TIED = {"tie_word_embeddings": True}
_KNOWN: dict[str, dict[str, Any]] = {
    "bert-base-uncased": _bert(768, 12, 12),
    "bert-large-uncased": _bert(1024, 24, 16),
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "t5-small": _t5(512, 2048, 6, 8),
    "t5-base": _t5(768, 3072, 12, 12),
    "t5-large": _t5(1024, 4096, 24, 16),
    "t5-3b": _t5(1024, 16384, 24, 32, 128),
    "t5-11b": _t5(1024, 65536, 24, 128, 128),
    "bart-base": _bart(768, 6, 12),
    "bart-large": _bart(1024, 12, 16),
    "smollm2-135m": _llama(576, 1536, 30, 9, 3, 49152, 8192, **_TIED),
    "smollm2-1.7b": _llama(2048, 8192, 24, 32, 32, 49152, 8192, **_TIED),
    "llama-7b": _llama(4096, 11008, 32, 32, 32, 32000, 2048),
    "llama-65b": _llama(8192, 22016, 80, 64, 64, 32000, 2048),
    "llama-2-7b": _llama(4096, 11008, 32, 32, 32, 32000, 4096),
    "llama-2-70b": _llama(8192, 28672, 80, 64, 8, 32000, 4096),
    "llama-3.2-1b": _llama(2048, 8192, 16, 32, 8, 128256, 131072, head_dim=64, **_TIED),
    "llama-3.1-8b": _llama(4096, 14336, 32, 32, 8, 128256, 131072),
    "llama-3.1-70b": _llama(8192, 28672, 80, 64, 8, 128256, 131072),
    "llama-3.1-405b": _llama(16384, 53248, 126, 128, 8, 128256, 131072),
    "mistral-7b": _llama(4096, 14336, 32, 32, 8, 32000, 32768) | {"model_type": "mistral", "sliding_window": 4096},
    "mixtral-8x7b": _llama(4096, 14336, 32, 32, 8, 32000, 32768)
    | {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen2.5-7b": _llama(3584, 18944, 28, 28, 4, 152064, 131072) | {"model_type": "qwen2"},
    "qwen3-8b": _llama(4096, 12288, 36, 32, 8, 151936, 40960, head_dim=128) | {"model_type": "qwen3"},
    "palm-2": _llama(18432, 49152, 96, 96, 8, 256000, 8192),
    "gpt-4": _llama(25600, 83200, 128, 160, 8, 128000, 8192),
}
_UNPUBLISHED = "the shape of {} was never published: this is a decoder in LLaMA's form of about {} parameters"
NOTES = {
    "palm-2": _UNPUBLISHED.format("PaLM 2", "340 billion"),
    "gpt-4": _UNPUBLISHED.format("GPT-4", "a trillion"),
}
"""What must be said with a name."""


def known_names() -> tuple[str, ...]:
    """Every name, in the order of families and sizes."""
    return tuple(_KNOWN)


def known_config(name: str) -> Config:
    """Return the config of a name, upper or lower case, with or without its organisation; raises `UsageError`."""
    short = name.rsplit("/", 1)[-1].lower()
    if short not in _KNOWN:
        raise UsageError(
            f"a size needs a model directory, a config.json, a recipe or a well-known name, but {name!r} is none"
            f"{nearest(short, _KNOWN)}"
        )
    return config_from_dict(_KNOWN[short])
