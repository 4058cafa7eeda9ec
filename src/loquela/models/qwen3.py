"""Qwen3 (2025, arXiv:2505.09388): LLaMA with a norm on each head's queries and keys, and its own head width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from loquela.layers.attention import MultiHeadAttention
from loquela.models.qwen2 import Qwen2Config
from loquela.models.rotary_decoder import RotaryDecoder


@dataclass
class Qwen3Config(Qwen2Config):
    """config.json of Qwen3 (dense)."""

    model_type: ClassVar[str] = "qwen3"
    hf_architecture: ClassVar[str] = "Qwen3ForCausalLM"
    fixed: ClassVar[dict[str, tuple[Any, ...]]] = {}

    head_dim: int | None = 128
    attention_bias: bool = False


class Qwen3(RotaryDecoder):
    """The decoder-only transformer of Qwen3."""

    config: Qwen3Config

    def attention(self, brick: type[MultiHeadAttention] = MultiHeadAttention, **options: Any) -> MultiHeadAttention:  # noqa: D102
        assert self.config.head_dim is not None
        q_norm, k_norm = self.norm(self.config.head_dim), self.norm(self.config.head_dim)
        return super().attention(brick, bias=self.config.attention_bias, q_norm=q_norm, k_norm=k_norm, **options)


CONFIG, NETWORK = Qwen3Config, Qwen3
