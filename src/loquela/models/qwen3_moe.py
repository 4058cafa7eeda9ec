"""Qwen3-MoE (2025, arXiv:2505.09388): Qwen3 with a mixture of experts in place of the feed-forward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from loquela.errors import ConfigError
from loquela.layers.attention import MultiHeadAttention
from loquela.models.base import Config
from loquela.models.qwen2_moe import QwenMoe, QwenMoeConfig


@dataclass
class Qwen3MoeConfig(QwenMoeConfig):
    """config.json of Qwen3-MoE: where a sliding window is used, every layer has it."""

    model_type: ClassVar[str] = "qwen3_moe"
    hf_architecture: ClassVar[str] = "Qwen3MoeForCausalLM"
    inert: ClassVar[frozenset[str]] = QwenMoeConfig.inert | {"max_window_layers"}

    intermediate_size: int = 6144
    num_key_value_heads: int | None = 4
    num_experts_per_tok: int = 8
    num_experts: int = 128
    moe_intermediate_size: int = 768
    attention_bias: bool = False

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Config:
        """Read `num_experts`, which newer files call `num_local_experts`."""
        raw = dict(raw)
        local = raw.pop("num_local_experts", None)
        if local is not None and raw.setdefault("num_experts", local) != local:
            raise ConfigError(f"num_experts must be num_local_experts, but they are {raw['num_experts']} and {local}")
        return super().from_dict(raw)

    def windows(self) -> list[int | None]:  # noqa: D102
        return [self.sliding_window] * self.num_hidden_layers


class Qwen3Moe(QwenMoe):
    """The decoder-only transformer of Qwen3-MoE."""

    config: Qwen3MoeConfig

    def attention(self, brick: type[MultiHeadAttention] = MultiHeadAttention, **options: Any) -> MultiHeadAttention:  # noqa: D102
        assert self.config.head_dim is not None
        q_norm, k_norm = self.norm(self.config.head_dim), self.norm(self.config.head_dim)
        return super().attention(brick, bias=self.config.attention_bias, q_norm=q_norm, k_norm=k_norm, **options)


CONFIG, NETWORK = Qwen3MoeConfig, Qwen3Moe
