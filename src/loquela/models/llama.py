"""LLaMA (Touvron et al., 2023, arXiv:2302.13971): RMSNorm, rotary positions, SwiGLU, grouped-query heads, no biases.

Versions 1, 2 and 3; from 3.1 on, rotary angles are stretched for texts longer than those of the pre-training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from loquela.layers.attention import MultiHeadAttention
from loquela.layers.feedforward import ACTIVATIONS, GatedFeedForward
from loquela.models.rotary_decoder import RotaryDecoder, RotaryDecoderConfig


@dataclass
class LlamaConfig(RotaryDecoderConfig):
    """config.json of LLaMA."""

    model_type: ClassVar[str] = "llama"
    hf_architecture: ClassVar[str] = "LlamaForCausalLM"
    fixed: ClassVar[dict[str, tuple[Any, ...]]] = {"rope_interleaved": (False,)}
    inert: ClassVar[frozenset[str]] = frozenset({"is_llama_config", "transformers.js_config"})  # SmolLM2 has them

    attention_bias: bool = False
    mlp_bias: bool = False


class Llama(RotaryDecoder):
    """The decoder-only transformer of LLaMA."""

    config: LlamaConfig

    def attention(self, brick: type[MultiHeadAttention] = MultiHeadAttention, **options: Any) -> MultiHeadAttention:  # noqa: D102
        return super().attention(brick, bias=self.config.attention_bias, **options)

    def feedforward(self, layer: int) -> nn.Module:  # noqa: D102
        config = self.config
        activation = ACTIVATIONS[config.hidden_act]
        return GatedFeedForward(config.hidden_size, config.intermediate_size, activation, bias=config.mlp_bias)


CONFIG, NETWORK = LlamaConfig, Llama
