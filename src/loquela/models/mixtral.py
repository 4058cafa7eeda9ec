"""Mixtral (Jiang et al., 2024, arXiv:2401.04088): Mistral with a mixture of experts in place of the feed-forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from loquela.errors import ConfigError
from loquela.layers.experts import MixtureOfExperts
from loquela.models.base import Rename
from loquela.models.mistral import MistralConfig
from loquela.models.rotary_decoder import RotaryDecoder


@dataclass
class MixtralConfig(MistralConfig):
    """config.json of Mixtral. The loss that balances its experts' load is not computed here."""

    model_type: ClassVar[str] = "mixtral"
    hf_architecture: ClassVar[str] = "MixtralForCausalLM"
    fixed: ClassVar[dict[str, tuple[Any, ...]]] = {"output_router_logits": (False,), "router_jitter_noise": (0.0,)}
    inert: ClassVar[frozenset[str]] = frozenset({"router_aux_loss_coef"})
    default_theta: ClassVar[float] = 1_000_000.0

    rms_norm_eps: float = 1e-5
    sliding_window: int | None = None
    num_local_experts: int = 8
    num_experts_per_tok: int = 2

    def check(self) -> None:
        """There must be as many experts as a token uses."""
        super().check()
        if self.num_experts_per_tok > self.num_local_experts:
            raise ConfigError(
                f"num_experts_per_tok must be at most num_local_experts, {self.num_local_experts}, "
                f"but is {self.num_experts_per_tok}"
            )


class Mixtral(RotaryDecoder):
    """The decoder-only transformer of Mixtral."""

    config: MixtralConfig
    renames: ClassVar[tuple[Rename, ...]] = (
        *RotaryDecoder.renames,
        ("decoder.layers.*.feedforward.router", "model.layers.*.block_sparse_moe.gate"),
        *(
            (f"decoder.layers.*.feedforward.experts.*.{ours}", f"model.layers.*.block_sparse_moe.experts.*.{theirs}")
            for ours, theirs in (("gate_proj", "w1"), ("down_proj", "w2"), ("up_proj", "w3"))
        ),
    )

    def feedforward(self, layer: int) -> MixtureOfExperts:  # noqa: D102
        config = self.config
        experts = (super(Mixtral, self).feedforward(layer) for _ in range(config.num_local_experts))
        return MixtureOfExperts(config.hidden_size, experts, config.num_experts_per_tok)


CONFIG, NETWORK = MixtralConfig, Mixtral
