"""OLMo 2 (2025, arXiv:2501.00656): LLaMA with its norms behind each half, and one over all queries and all keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from loquela.layers.attention import MultiHeadAttention
from loquela.layers.block import SandwichBlock
from loquela.models.base import Rename
from loquela.models.rotary_decoder import RotaryDecoder, RotaryDecoderConfig


@dataclass
class Olmo2Config(RotaryDecoderConfig):
    """config.json of OLMo 2."""

    model_type: ClassVar[str] = "olmo2"
    hf_architecture: ClassVar[str] = "Olmo2ForCausalLM"

    vocab_size: int = 50304
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False


class WideNormAttention(MultiHeadAttention):
    """Attention that normalises queries and keys across all their heads at once, before these are told apart."""

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, heads, Q, E), keys and values (both B, kv_heads, Q, E) of `x`, not yet rotated."""
        assert self.q_norm is not None
        assert self.k_norm is not None
        q, k, v = self.q_norm(self.q_proj(x)), self.k_norm(self.k_proj(x)), self.v_proj(x)
        return self._heads(q, self.heads), self._heads(k, self.kv_heads), self._heads(v, self.kv_heads)


class Olmo2(RotaryDecoder):
    """The decoder-only transformer of OLMo 2."""

    config: Olmo2Config
    renames: ClassVar[tuple[Rename, ...]] = (
        ("decoder.layers.*.after_attention_norm", "model.layers.*.post_attention_layernorm"),
        ("decoder.layers.*.after_feedforward_norm", "model.layers.*.post_feedforward_layernorm"),
        *RotaryDecoder.renames,
    )

    def block(self, layer: int) -> nn.Module:  # noqa: D102
        dim = self.config.hidden_size
        return SandwichBlock(
            self.attention(),
            self.feedforward(layer),
            nn.Identity(),
            nn.Identity(),
            after_attention_norm=self.norm(dim),
            after_feedforward_norm=self.norm(dim),
        )

    def attention(self, brick: type[MultiHeadAttention] = WideNormAttention, **options: Any) -> MultiHeadAttention:  # noqa: D102
        config = self.config
        assert config.head_dim is not None
        assert config.num_key_value_heads is not None
        return super().attention(
            brick,
            bias=config.attention_bias,
            q_norm=self.norm(config.num_attention_heads * config.head_dim),
            k_norm=self.norm(config.num_key_value_heads * config.head_dim),
            **options,
        )

    def initialise(self) -> None:
        """As LLaMA's, but U(±1/√in) for what writes to the stream: behind a norm, zero has no useful derivative."""
        super().initialise()
        for name, parameter in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                bound = parameter.shape[1] ** -0.5
                nn.init.uniform_(parameter, -bound, bound)


CONFIG, NETWORK = Olmo2Config, Olmo2
