"""Qwen3 (2025, arXiv:2505.09388): LLaMA with a norm on each head's queries and keys, and its own head width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from loquela.models.llama import Llama, LlamaConfig


@dataclass
class Qwen3Config(LlamaConfig):
    """config.json of Qwen3 (dense)."""

    model_type: ClassVar[str] = "qwen3"
    hf_architecture: ClassVar[str] = "Qwen3ForCausalLM"
    fixed: ClassVar[dict[str, tuple[Any, ...]]] = {"use_sliding_window": (False,), "sliding_window": (None,)}
    inert: ClassVar[frozenset[str]] = frozenset({"max_window_layers", "layer_types"})
    qk_norm: ClassVar[bool] = True

    vocab_size: int = 151936
    intermediate_size: int = 22016
    head_dim: int | None = 128
    max_position_embeddings: int = 32768


class Qwen3(Llama):
    """The decoder-only transformer of Qwen3."""

    config: LlamaConfig


CONFIG, NETWORK = Qwen3Config, Qwen3
