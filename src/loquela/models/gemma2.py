"""Gemma 2 (2024, arXiv:2408.00118): norms on both sides of every half, soft caps, and a window in every other layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from loquela.errors import ConfigError
from loquela.layers.attention import MultiHeadAttention, shared_heads, weigh
from loquela.layers.block import SandwichBlock
from loquela.layers.norms import RMSNorm, rms_normalise
from loquela.models.base import Config, Rename
from loquela.models.rope import number
from loquela.models.rotary_decoder import RotaryDecoder, RotaryDecoderConfig


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """`cap · tanh(x / cap)`: nearly `x` where it is small, never beyond ±cap."""
    return cap * torch.tanh(x / cap)


class GemmaNorm(RMSNorm):
    """`x / rms(x) * (1 + weight)`, computed in float32 at least."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__(dim, eps, weight=False)
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (…, dim); same shape and dtype."""
        assert self.weight is not None
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        return (rms_normalise(wide, self.eps) * (1.0 + self.weight.to(wide.dtype))).to(x.dtype)


class SoftCappedAttention(MultiHeadAttention):
    """Attention whose scores stay within ±`cap`."""

    def __init__(self, *args: Any, cap: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self.cap = cap

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, causal: bool = False) -> Tensor:
        """Return what each query sees (B, heads, Q, E)."""
        assert self.scale is not None
        k, v = shared_heads(k, self.heads), shared_heads(v, self.heads)
        scores = soft_cap(q @ k.transpose(-1, -2) * self.scale, self.cap)
        dropout = self.dropout if self.training else 0.0
        return weigh(scores, v, mask=mask, causal=causal, dropout=dropout, probe=self.probe)


@dataclass
class Gemma2Config(RotaryDecoderConfig):
    """config.json of Gemma 2, which calls the activation `hidden_activation`; a soft cap of null is none."""

    model_type: ClassVar[str] = "gemma2"
    hf_architecture: ClassVar[str] = "Gemma2ForCausalLM"
    fixed: ClassVar[dict[str, tuple[Any, ...]]] = {"use_bidirectional_attention": (None, False)}
    inert: ClassVar[frozenset[str]] = frozenset({"cache_implementation"})

    vocab_size: int = 256000
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int | None = 4
    head_dim: int | None = 256
    hidden_act: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 8192
    attention_bias: bool = False
    tie_word_embeddings: bool = True
    query_pre_attn_scalar: float = 256
    sliding_window: int | None = 4096
    layer_types: list[str] | None = None
    attn_logit_softcapping: float | None = 50.0
    final_logit_softcapping: float | None = 30.0

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Config:
        """Read `hidden_activation`; older files say the same once more as `hidden_act`."""
        raw = dict(raw)
        activation = raw.pop("hidden_activation", None) or cls.hidden_act
        if raw.setdefault("hidden_act", activation) != activation:
            raise ConfigError(
                f"hidden_act must be hidden_activation, but they are {raw['hidden_act']!r} and {activation!r}"
            )
        return super().from_dict(raw)

    def to_dict(self) -> dict[str, Any]:
        """Write `hidden_activation`."""
        written = super().to_dict()
        return written | {"hidden_activation": written.pop("hidden_act")}

    def complete(self) -> None:
        """Write out what each layer is; scales must be numbers."""
        if self.layer_types is None:
            self.layer_types = [
                "full_attention" if layer % 2 else "sliding_attention" for layer in range(self.num_hidden_layers)
            ]
        for key in ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"):
            if getattr(self, key) is not None:
                number(key, getattr(self, key))

    def windows(self) -> list[int | None]:  # noqa: D102
        return self.windows_by_type(self.layer_types, self.sliding_window)


class Gemma2(RotaryDecoder):
    """The decoder-only transformer of Gemma 2."""

    config: Gemma2Config
    renames: ClassVar[tuple[Rename, ...]] = (
        ("decoder.layers.*.after_attention_norm", "model.layers.*.post_attention_layernorm"),
        ("decoder.layers.*.feedforward_norm", "model.layers.*.pre_feedforward_layernorm"),
        ("decoder.layers.*.after_feedforward_norm", "model.layers.*.post_feedforward_layernorm"),
        *RotaryDecoder.renames,  # of two rules for one name, the first holds
    )

    def block(self, layer: int) -> nn.Module:  # noqa: D102
        before, before_feedforward, after, after_feedforward = (self.norm(self.config.hidden_size) for _ in range(4))
        return SandwichBlock(
            self.attention(),
            self.feedforward(layer),
            before,
            before_feedforward,
            after_attention_norm=after,
            after_feedforward_norm=after_feedforward,
        )

    def attention(self, brick: type[MultiHeadAttention] = MultiHeadAttention, **options: Any) -> MultiHeadAttention:  # noqa: D102
        config = self.config
        if config.attn_logit_softcapping is not None:
            brick, options = SoftCappedAttention, {"cap": config.attn_logit_softcapping, **options}
        scale = config.query_pre_attn_scalar**-0.5
        return super().attention(brick, bias=config.attention_bias, scale=scale, **options)

    def norm(self, dim: int) -> GemmaNorm:  # noqa: D102
        return GemmaNorm(dim, self.config.rms_norm_eps)

    def embed(self, tokens: Tensor) -> Tensor:  # noqa: D102
        x = super().embed(tokens)
        return x * x.new_tensor(self.config.hidden_size**0.5)  # rounded to the dtype of x, as the models were trained

    def head(self, hidden: Tensor) -> Tensor:  # noqa: D102
        logits = super().head(hidden)
        cap = self.config.final_logit_softcapping
        return logits if cap is None else soft_cap(logits, cap)

    def initialise(self) -> None:
        """As LLaMA's, but U(±1/√in) for what writes to the stream: behind a norm, zero has no useful derivative."""
        super().initialise()
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                nn.init.zeros_(parameter)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                bound = parameter.shape[1] ** -0.5
                nn.init.uniform_(parameter, -bound, bound)


CONFIG, NETWORK = Gemma2Config, Gemma2
