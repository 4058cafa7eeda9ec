"""The decoder that LLaMA began and most open models follow: what they share; each one's file says what it changes.

Token embedding, blocks, a norm, a head; rotary positions turn queries and keys in every block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from torch import Tensor, nn

from loquela.errors import ConfigError
from loquela.layers.attention import MultiHeadAttention
from loquela.layers.block import PreNormBlock
from loquela.layers.cache import Cache, positions
from loquela.layers.decoder import Decoder
from loquela.layers.feedforward import ACTIVATIONS, GatedFeedForward
from loquela.layers.norms import RMSNorm
from loquela.layers.positions import Rotary
from loquela.models import rope
from loquela.models.base import Config, Network, Rename

__all__ = ["RotaryDecoder", "RotaryDecoderConfig"]

_MOST_LAYERS = 10_000  # more in a config is a mistake, or meant to fill the memory


@dataclass
class RotaryDecoderConfig(Config):
    """The keys that all of them have. Rotary settings are read in either spelling; see `loquela.models.rope`."""

    default_theta: ClassVar[float] = 10_000.0
    """The base of the rotary angles where config.json names none."""

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
    rope_parameters: dict[str, Any] = field(default_factory=dict)
    attention_dropout: float = 0.0
    tie_word_embeddings: bool = False

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Config:
        """Read a config.json with either spelling of the rotary settings."""
        return super().from_dict(rope.joined(raw))

    def to_dict(self) -> dict[str, Any]:
        """Write both spellings of the rotary settings."""
        return super().to_dict() | self.rope_as_before()

    def check(self) -> None:
        """Fill in what follows from other fields; refuse what the bricks do not do."""
        super().check()
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.must_divide("hidden_size", "num_attention_heads")
            self.head_dim = self.hidden_size // self.num_attention_heads
        self.whole_number("num_key_value_heads")
        self.whole_number("head_dim")
        self.must_divide("num_attention_heads", "num_key_value_heads")
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even for rotary positions, but is {self.head_dim}")
        if self.num_hidden_layers > _MOST_LAYERS:
            raise ConfigError(f"num_hidden_layers must be at most {_MOST_LAYERS}, but is {self.num_hidden_layers}")
        if self.hidden_act not in list(ACTIVATIONS):
            raise ConfigError(f"hidden_act must be one of {', '.join(ACTIVATIONS)}, but is {self.hidden_act!r}")
        rope.number("rms_norm_eps", self.rms_norm_eps)
        if not isinstance(self.attention_dropout, int | float) or not 0 <= self.attention_dropout < 1:
            raise ConfigError(f"attention_dropout must be a share from 0 to below 1, but is {self.attention_dropout!r}")
        for setting in fields(self):
            if setting.type == "bool" and not isinstance(value := getattr(self, setting.name), bool):
                raise ConfigError(f"{setting.name} must be true or false, but is {value!r}")
        self.complete()
        self.check_rope()
        for window in self.windows():
            if window is not None and (type(window) is not int or window < 1):
                raise ConfigError(f"sliding_window must be a positive whole number, but is {window!r}")

    def complete(self) -> None:
        """Fill in what an architecture derives from other fields; those are checked by then."""

    def whole_number(self, key: str, *, least: int = 1) -> int:
        """Return field `key`; raises `ConfigError` unless it is a whole number of at least `least`."""
        value = getattr(self, key)
        if type(value) is not int or not least <= value < 2**31:
            raise ConfigError(f"{key} must be a whole number of at least {least}, but is {value!r}")
        return value

    def check_rope(self) -> None:
        """Complete the rotary settings."""
        self.rope_parameters = rope.completed(
            self.rope_parameters, theta=self.default_theta, window=self.max_position_embeddings
        )

    def rope_as_before(self) -> dict[str, Any]:
        """Return the rotary settings under the keys of older files."""
        return rope.spelled_as_before(self.rope_parameters)

    def windows(self) -> list[int | None]:
        """How far back each layer looks; None: all the way."""
        return [None] * self.num_hidden_layers

    def windows_by_type(self, layer_types: Any, window: int | None) -> list[int | None]:
        """How far back each layer looks, by the kind of each that config.json names in `layer_types`."""
        if not isinstance(layer_types, list) or len(layer_types) != self.num_hidden_layers:
            raise ConfigError(
                f"layer_types must name each of the {self.num_hidden_layers} hidden layers, but is {layer_types!r}"
            )
        kinds = ["full_attention"] if window is None else ["full_attention", "sliding_attention"]
        for kind in layer_types:
            if kind not in kinds:
                raise ConfigError(
                    f"layer_types must be {' or '.join(kinds)} where sliding_window is {window}, but one is {kind!r}"
                )
        return [window if kind == "sliding_attention" else None for kind in layer_types]


class RotaryDecoder(Network):
    """Pre-norm blocks with rotary positions, grouped-query heads and a gated feed-forward.

    A subclass changes a part by making it in its own way: `attention`, `feedforward`, `norm`, `block`, `rotary`.
    """

    config: RotaryDecoderConfig
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

    def __init__(self, config: RotaryDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.decoder = Decoder(
            (self.block(layer) for layer in range(config.num_hidden_layers)),
            self.norm(config.hidden_size),
            windows=config.windows(),
        )
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.token_embedding.weight
        frequencies, self.rotary_scale = self.angles()
        self.register_buffer("rotary_frequencies", frequencies, persistent=False)

    def block(self, layer: int) -> nn.Module:
        """Make one layer, counted from 0."""
        dim = self.config.hidden_size
        return PreNormBlock(self.attention(), self.feedforward(layer), self.norm(dim), self.norm(dim))

    def attention(self, brick: type[MultiHeadAttention] = MultiHeadAttention, **options: Any) -> MultiHeadAttention:
        """Make a layer's attention, with further `options` of its `brick`."""
        config = self.config
        return brick(
            config.hidden_size,
            config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            dropout=config.attention_dropout,
            **options,
        )

    def feedforward(self, layer: int) -> nn.Module:
        """Make the feed-forward of one layer, counted from 0."""
        config = self.config
        return GatedFeedForward(config.hidden_size, config.intermediate_size, ACTIVATIONS[config.hidden_act])

    def norm(self, dim: int) -> nn.Module:
        """Make a norm over `dim` numbers."""
        return RMSNorm(dim, self.config.rms_norm_eps)

    def angles(self) -> tuple[Tensor, float]:
        """Return the rotary frequencies (head_dim / 2,) and what sines and cosines are multiplied by."""
        assert self.config.head_dim is not None
        return rope.angles(self.config.rope_parameters, self.config.head_dim)

    @property
    def vocab_size(self) -> int:  # noqa: D102
        return self.config.vocab_size

    @property
    def context_length(self) -> int:  # noqa: D102
        return max(self.config.max_position_embeddings, rope.reach(self.config.rope_parameters))

    @property
    def dim(self) -> int:  # noqa: D102
        return self.config.hidden_size

    def hidden(
        self,
        tokens: Tensor,
        *,
        cache: Cache | None = None,
        padding: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:
        """Return the last hidden states; `segments` (batch, seq) numbers documents that stand side by side in a row.

        Each is read as if it stood alone; such a row is read whole, without a cache.
        """
        where = positions(cache, tokens.shape[1], tokens.device, padding=padding, segments=segments)
        rotary = self.rotary(where)
        return self.decoder(self.embed(tokens), rotary=rotary, cache=cache, padding=padding, segments=segments)  # type: ignore[no-any-return]

    def embed(self, tokens: Tensor) -> Tensor:
        """Return what enters the first block (batch, seq, dim)."""
        return self.token_embedding(tokens)  # type: ignore[no-any-return]

    def rotary(self, where: Tensor) -> Rotary | Sequence[Rotary | None]:
        """Return the rotation at positions `where` (seq,) or (batch, seq): one for all layers, or one per layer."""
        return Rotary.at(where, self.rotary_frequencies, scale=self.rotary_scale)

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
