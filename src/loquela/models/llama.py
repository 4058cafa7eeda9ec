"""LLaMA (Touvron et al., 2023, arXiv:2302.13971): RMSNorm, rotary positions, SwiGLU, grouped-query heads, no biases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from loquela.errors import ConfigError
from loquela.layers.attention import MultiHeadAttention
from loquela.layers.block import PreNormBlock
from loquela.layers.cache import Cache, positions
from loquela.layers.decoder import Decoder
from loquela.layers.feedforward import ACTIVATIONS, GatedFeedForward
from loquela.layers.masks import positions_from_padding
from loquela.layers.norms import RMSNorm
from loquela.layers.positions import Rotary, rotary_frequencies
from loquela.models.base import Config, Network, Rename


@dataclass
class LlamaConfig(Config):
    """config.json of LLaMA. `rope_theta` is read from `rope_parameters` too, where newer files keep it."""

    model_type: ClassVar[str] = "llama"
    hf_architecture: ClassVar[str] = "LlamaForCausalLM"
    inert: ClassVar[frozenset[str]] = frozenset({"pretraining_tp"})
    qk_norm: ClassVar[bool] = False
    """Whether each head's queries and keys are normalised before the rotation."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_parameters: dict[str, Any] = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10_000.0})
    attention_bias: bool = False
    attention_dropout: float = 0.0
    mlp_bias: bool = False
    tie_word_embeddings: bool = False

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Config:
        """Read both spellings of the rotary settings: `rope_parameters`, or `rope_theta` with `rope_scaling`."""
        raw = dict(raw)
        theta, scaling = raw.pop("rope_theta", None), raw.pop("rope_scaling", None)
        if theta is not None or scaling is not None:
            old = {"rope_type": "default", "rope_theta": 10_000.0 if theta is None else theta, **(scaling or {})}
            if "type" in old:
                old["rope_type"] = old.pop("type")
            raw["rope_parameters"] = {**old, **(raw.get("rope_parameters") or {})}
        return super().from_dict(raw)

    def to_dict(self) -> dict[str, Any]:
        """Write both spellings, since older readers know only `rope_theta`."""
        return super().to_dict() | {"rope_theta": self.rope_parameters["rope_theta"]}

    def check(self) -> None:
        """Fill in what follows from other fields; refuse what the bricks do not do."""
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.must_divide("hidden_size", "num_attention_heads")
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().check()
        self.must_divide("num_attention_heads", "num_key_value_heads")
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even for rotary positions, but is {self.head_dim}")
        if self.hidden_act not in ACTIVATIONS:
            raise ConfigError(f"hidden_act must be one of {', '.join(ACTIVATIONS)}, but is {self.hidden_act!r}")
        self.rope_parameters = {"rope_type": "default", "rope_theta": 10_000.0} | self.rope_parameters
        if self.rope_parameters["rope_type"] != "default":
            raise ConfigError(f"rope_type must be 'default', but is {self.rope_parameters['rope_type']!r}")
        if unknown := self.rope_parameters.keys() - {"rope_type", "rope_theta"}:
            raise ConfigError(f"rope_parameters has unknown keys: {', '.join(sorted(unknown))}")


class Llama(Network):
    """The decoder-only transformer of LLaMA."""

    config: LlamaConfig
    base_prefix = "model."
    ignored = ("model.layers.*.self_attn.rotary_emb.inv_freq",)
    renames: ClassVar[tuple[Rename, ...]] = (
        ("token_embedding", "model.embed_tokens"),
        ("decoder.layers.*.attention_norm", "model.layers.*.input_layernorm"),
        ("decoder.layers.*.attention", "model.layers.*.self_attn"),
        ("decoder.layers.*.feedforward_norm", "model.layers.*.post_attention_layernorm"),
        ("decoder.layers.*.feedforward", "model.layers.*.mlp"),
        ("decoder.norm", "model.norm"),
        ("lm_head", "lm_head"),
    )
    rotary_frequencies: Tensor

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        assert config.head_dim is not None
        dim, eps = config.hidden_size, config.rms_norm_eps

        def head_norm() -> RMSNorm | None:
            assert config.head_dim is not None
            return RMSNorm(config.head_dim, eps) if config.qk_norm else None

        self.token_embedding = nn.Embedding(config.vocab_size, dim)
        self.decoder = Decoder(
            (
                PreNormBlock(
                    MultiHeadAttention(
                        dim,
                        config.num_attention_heads,
                        kv_heads=config.num_key_value_heads,
                        head_dim=config.head_dim,
                        bias=config.attention_bias,
                        q_norm=head_norm(),
                        k_norm=head_norm(),
                        dropout=config.attention_dropout,
                    ),
                    GatedFeedForward(
                        dim, config.intermediate_size, ACTIVATIONS[config.hidden_act], bias=config.mlp_bias
                    ),
                    RMSNorm(dim, eps),
                    RMSNorm(dim, eps),
                )
                for _ in range(config.num_hidden_layers)
            ),
            RMSNorm(dim, eps),
        )
        self.lm_head = nn.Linear(dim, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.token_embedding.weight
        frequencies = rotary_frequencies(config.head_dim, config.rope_parameters["rope_theta"])
        self.register_buffer("rotary_frequencies", frequencies, persistent=False)

    @property
    def vocab_size(self) -> int:  # noqa: D102
        return self.config.vocab_size

    @property
    def context_length(self) -> int:  # noqa: D102
        return self.config.max_position_embeddings

    @property
    def dim(self) -> int:  # noqa: D102
        return self.config.hidden_size

    def hidden(self, tokens: Tensor, *, cache: Cache | None = None, padding: Tensor | None = None) -> Tensor:  # noqa: D102
        if padding is None:
            where = positions(cache, tokens.shape[1], tokens.device)
        else:
            where = positions_from_padding(padding, tokens.shape[1])
        x = self.token_embedding(tokens)
        rotary = Rotary.at(where, self.rotary_frequencies)
        return self.decoder(x, rotary=rotary, cache=cache, padding=padding)  # type: ignore[no-any-return]

    def head(self, hidden: Tensor) -> Tensor:  # noqa: D102
        return self.lm_head(hidden)  # type: ignore[no-any-return]

    def new_cache(self) -> Cache:  # noqa: D102
        return Cache(self.config.num_hidden_layers)

    def initialise(self) -> None:
        """U(±1/√in) for what reads the stream, zero for what writes to it, so that a block starts as the identity.

        That lets large learning rates through from the first step. An untied head starts at zero and the embedding at
        N(0, 1), the scale that the norms give to everything else; tied, both are N(0, 0.02). A norm on queries starts
        at 1.4, which sharpens attention a little (measured: docs/recipes.md).
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.4 if "q_norm" in name else 1.0)
            elif name.endswith(("o_proj.weight", "down_proj.weight")) or name == "lm_head.weight":
                nn.init.zeros_(parameter)
            elif name == "token_embedding.weight":
                nn.init.normal_(parameter, std=0.02 if self.config.tie_word_embeddings else 1.0)
            else:
                bound = parameter.shape[1] ** -0.5
                nn.init.uniform_(parameter, -bound, bound)


CONFIG, NETWORK = LlamaConfig, Llama
