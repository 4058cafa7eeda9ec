"""Qwen1.5-MoE and Qwen2-MoE (2024, arXiv:2407.10671): Qwen2 with small experts, and one that every token uses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from loquela.errors import ConfigError
from loquela.layers.attention import MultiHeadAttention
from loquela.layers.experts import MixtureOfExperts
from loquela.layers.feedforward import ACTIVATIONS, GatedFeedForward
from loquela.models.base import Rename
from loquela.models.rotary_decoder import RotaryDecoder, RotaryDecoderConfig


@dataclass
class QwenMoeConfig(RotaryDecoderConfig):
    """What Qwen's mixtures share: every `decoder_sparse_step`-th layer has experts, but for the `mlp_only_layers`."""

    fixed: ClassVar[dict[str, tuple[Any, ...]]] = {"output_router_logits": (False,)}
    inert: ClassVar[frozenset[str]] = frozenset({"router_aux_loss_coef"})

    vocab_size: int = 151936
    hidden_size: int = 2048
    num_hidden_layers: int = 24
    max_position_embeddings: int = 32768
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    decoder_sparse_step: int = 1
    mlp_only_layers: list[int] | None = None
    num_experts_per_tok: int = 4
    num_experts: int = 60
    moe_intermediate_size: int = 1408
    norm_topk_prob: bool = False

    def complete(self) -> None:
        """A window that is not used is none; there must be as many experts as a token uses."""
        if not self.use_sliding_window:
            self.sliding_window = None
        if not isinstance(self.mlp_only_layers, list | None):
            raise ConfigError(f"mlp_only_layers must be a list of layers, but is {self.mlp_only_layers!r}")
        if self.num_experts_per_tok > self.num_experts:
            raise ConfigError(
                f"num_experts_per_tok must be at most num_experts, {self.num_experts}, but is "
                f"{self.num_experts_per_tok}"
            )

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer, counted from 0, has experts."""
        return layer not in (self.mlp_only_layers or ()) and (layer + 1) % self.decoder_sparse_step == 0


class QwenMoe(RotaryDecoder):
    """What Qwen's mixtures share: dense layers among those with experts."""

    config: QwenMoeConfig
    renames: ClassVar[tuple[Rename, ...]] = (
        *RotaryDecoder.renames,
        ("decoder.layers.*.feedforward.router", "model.layers.*.mlp.gate"),
    )

    def feedforward(self, layer: int) -> nn.Module:  # noqa: D102
        return self.mixture() if self.config.is_sparse(layer) else super().feedforward(layer)

    def mixture(self) -> MixtureOfExperts:
        """Make the mixture of experts of one layer."""
        config = self.config
        experts = (self.expert(config.moe_intermediate_size) for _ in range(config.num_experts))
        return MixtureOfExperts(
            config.hidden_size, experts, config.num_experts_per_tok, normalise=config.norm_topk_prob
        )

    def expert(self, width: int) -> GatedFeedForward:
        """Make one expert."""
        return GatedFeedForward(self.config.hidden_size, width, ACTIVATIONS[self.config.hidden_act])


@dataclass
class Qwen2MoeConfig(QwenMoeConfig):
    """config.json of Qwen2-MoE: where a sliding window is used, every other layer before `max_window_layers` has it."""

    model_type: ClassVar[str] = "qwen2_moe"
    hf_architecture: ClassVar[str] = "Qwen2MoeForCausalLM"

    intermediate_size: int = 5632
    num_attention_heads: int = 16
    num_key_value_heads: int | None = 16
    qkv_bias: bool = True
    shared_expert_intermediate_size: int = 5632
    max_window_layers: int | None = 28
    layer_types: list[str] | None = None

    def complete(self) -> None:
        """Write out what each layer is."""
        super().complete()
        if self.layer_types is None:
            last = self.whole_number("max_window_layers", least=0) if self.sliding_window is not None else 0
            self.layer_types = [
                "full_attention" if layer % 2 or layer >= last else "sliding_attention"
                for layer in range(self.num_hidden_layers)
            ]

    def windows(self) -> list[int | None]:  # noqa: D102
        return self.windows_by_type(self.layer_types, self.sliding_window)


class MixtureBesideShared(MixtureOfExperts):
    """Chosen experts, and beside them one that every token uses as far as a gate of its own lets it."""

    def __init__(
        self, dim: int, experts: Iterable[nn.Module], chosen: int, shared: nn.Module, *, normalise: bool
    ) -> None:
        super().__init__(dim, experts, chosen, normalise=normalise)
        self.shared_expert = shared
        self.shared_expert_gate = nn.Linear(dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (…, dim) to the same shape."""
        share = torch.sigmoid(self.shared_expert_gate(x))  # (…, 1)
        return super().forward(x) + share * self.shared_expert(x)  # type: ignore[no-any-return]


class Qwen2Moe(QwenMoe):
    """The decoder-only transformer of Qwen2-MoE."""

    config: Qwen2MoeConfig

    def attention(self, brick: type[MultiHeadAttention] = MultiHeadAttention, **options: Any) -> MultiHeadAttention:  # noqa: D102
        return super().attention(brick, bias=self.config.qkv_bias, out_bias=False, **options)

    def mixture(self) -> MixtureOfExperts:  # noqa: D102
        config = self.config
        experts = (self.expert(config.moe_intermediate_size) for _ in range(config.num_experts))
        shared = self.expert(config.shared_expert_intermediate_size)
        return MixtureBesideShared(
            config.hidden_size, experts, config.num_experts_per_tok, shared, normalise=config.norm_topk_prob
        )


CONFIG, NETWORK = Qwen2MoeConfig, Qwen2Moe
