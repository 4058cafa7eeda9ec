"""Phi-3, 3.5 and 4 (2024, arXiv:2404.14219): LLaMA with fused matrices, and a rotation that long texts slow down."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from loquela.errors import ConfigError, UsageError
from loquela.layers.block import PreNormBlock
from loquela.layers.cache import Cache, positions
from loquela.layers.feedforward import ACTIVATIONS
from loquela.layers.positions import Rotary, rotary_frequencies
from loquela.models import rope
from loquela.models.base import Config
from loquela.models.rope import number
from loquela.models.rotary_decoder import RotaryDecoder, RotaryDecoderConfig


@dataclass
class Phi3Config(RotaryDecoderConfig):
    """config.json of Phi-3; `partial_rotary_factor` is the share of each head that is rotated."""

    model_type: ClassVar[str] = "phi3"
    hf_architecture: ClassVar[str] = "Phi3ForCausalLM"
    fixed: ClassVar[dict[str, tuple[Any, ...]]] = {
        "embd_pdrop": (0.0,),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "lm_head_bias": (False,),
        "full_attn_mod": (1,),
        "interpolate_factor": (1,),
    }
    inert: ClassVar[frozenset[str]] = frozenset({"auto_map"})  # the code of its first days; what it computes is here

    vocab_size: int = 32064
    hidden_size: int = 3072
    intermediate_size: int = 8192
    resid_pdrop: float = 0.0
    max_position_embeddings: int = 4096
    original_max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    sliding_window: int | None = None
    partial_rotary_factor: float = 1.0

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Config:
        """Read the settings that older files keep beside `rope_scaling`, and the older names of `longrope`."""
        raw = rope.joined(raw)
        parameters = raw["rope_parameters"]
        if parameters.get("rope_type") in ("su", "yarn"):
            parameters["rope_type"] = "longrope"
        for key in ("partial_rotary_factor", "original_max_position_embeddings"):
            if key in parameters and raw.setdefault(key, parameters[key]) != parameters[key]:
                raise ConfigError(f"{key} must be one number, but is {raw[key]!r} and {parameters[key]!r}")
            parameters.pop(key, None)
        return super().from_dict(raw)

    def rope_as_before(self) -> dict[str, Any]:  # noqa: D102
        old = super().rope_as_before()
        if scaling := old.get("rope_scaling"):
            scaling["type"] = scaling.pop("rope_type")  # transformers 4 knows no other name of it here
        return old

    def check_rope(self) -> None:
        """Complete the rotary settings; every rotated pair has its own factors."""
        number("partial_rotary_factor", self.partial_rotary_factor)
        width = self.rotary_width
        assert self.head_dim is not None
        if width % 2 or not 2 <= width <= self.head_dim:
            raise ConfigError(
                f"partial_rotary_factor must rotate an even part of a head, but {self.partial_rotary_factor} rotates "
                f"{width} of {self.head_dim}"
            )
        self.rope_parameters = rope.completed(
            self.rope_parameters,
            theta=self.default_theta,
            window=self.max_position_embeddings,
            kinds=("default", "longrope"),
        )
        for key in ("short_factor", "long_factor") if self.stretched else ():
            factors = self.rope_parameters[key]
            if not isinstance(factors, list) or len(factors) != width // 2:
                raise ConfigError(f"{key} must be a list of {width // 2} numbers, but is {factors!r}")
            for factor in factors:
                number(key, factor)

    @property
    def rotary_width(self) -> int:
        """Numbers of each head that are rotated."""
        assert self.head_dim is not None
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def stretched(self) -> bool:
        """Whether texts longer than the original window rotate in their own way."""
        return bool(self.rope_parameters["rope_type"] == "longrope")

    def windows(self) -> list[int | None]:  # noqa: D102
        return [self.sliding_window] * self.num_hidden_layers


class FusedFeedForward(nn.Module):
    """`down(activation(gate(x)) ⊙ up(x))` with gate and up in one matrix."""

    def __init__(self, dim: int, hidden: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(dim, 2 * hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (…, dim) to the same shape."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(self.activation(gate) * up)  # type: ignore[no-any-return]


class ReplayCache(Cache):
    """A cache that remembers the tokens themselves, and which rows were rotated as long texts."""

    unreads = False  # tokens read together across the original window are all rotated as a long text

    def __init__(self, layers: int) -> None:
        super().__init__(layers)
        self.tokens = torch.empty(0, 0, dtype=torch.long)  # (batch, length)
        self.long = torch.empty(0, dtype=torch.bool)  # (batch or 1,)
        self.refill: Callable[[ReplayCache, Tensor], None] | None = None
        """Puts virtual positions into the empty cache, as in rows that are long or not (batch or 1,)."""
        self.always: bool | None = None
        """Whether all is long, whatever its length: set where virtual positions are read by themselves."""

    def joined(self, tokens: Tensor) -> Tensor:
        """Return all tokens held (batch, length - virtual) and the new ones behind them."""
        return torch.cat((self.tokens, tokens), dim=1) if self.tokens.shape[1] else tokens

    def anew(self, long: Tensor) -> None:
        """Forget all, but for the virtual positions, which are what they are in rows that are `long` (batch or 1,)."""
        super().truncate(0)
        if self.virtual:
            assert self.refill is not None
            self.refill(self, long)

    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` positions."""
        super().truncate(length)
        self.tokens = self.tokens[:, : max(0, length - self.virtual)]

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) batch rows, as beam search does."""
        super().select(rows)
        self.tokens = self.tokens.index_select(0, rows)
        self.long = self.long if len(self.long) == 1 else self.long.index_select(0, rows)


class Phi3(RotaryDecoder):
    """The decoder-only transformer of Phi-3.

    With LongRoPE (arXiv:2402.13753), a text longer than the original window is rotated more slowly from its first token
    on. When one grows across that length, all that its cache holds is computed anew, once. Virtual positions before the
    text count as a part of it, and turn with it; keys that an adapter gives as they are stay so.
    """

    config: Phi3Config
    long_frequencies: Tensor

    def __init__(self, config: Phi3Config) -> None:
        super().__init__(config)
        if config.stretched:
            self.register_buffer("long_frequencies", self._divided("long_factor"), persistent=False)

    def block(self, layer: int) -> nn.Module:  # noqa: D102
        dim, dropout = self.config.hidden_size, self.config.resid_pdrop
        attention = self.attention(fused=True)
        return PreNormBlock(attention, self.feedforward(layer), self.norm(dim), self.norm(dim), dropout=dropout)

    def feedforward(self, layer: int) -> nn.Module:  # noqa: D102
        config = self.config
        return FusedFeedForward(config.hidden_size, config.intermediate_size, ACTIVATIONS[config.hidden_act])

    def angles(self) -> tuple[Tensor, float]:
        """Return the frequencies of texts within the original window (width / 2,), and the scale of all."""
        config, parameters = self.config, self.config.rope_parameters
        if not config.stretched:
            return self._frequencies(), 1.0
        original = config.original_max_position_embeddings
        factor = parameters.get("factor", config.max_position_embeddings / original)
        scale = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        return self._divided("short_factor"), parameters.get("attention_factor", scale)

    def _frequencies(self) -> Tensor:
        return rotary_frequencies(self.config.rotary_width, self.config.rope_parameters["rope_theta"])

    def _divided(self, key: str) -> Tensor:
        return self._frequencies() / torch.tensor(self.config.rope_parameters[key])

    def hidden(  # noqa: D102
        self,
        tokens: Tensor,
        *,
        cache: Cache | None = None,
        padding: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:
        if not self.config.stretched:
            return super().hidden(tokens, cache=cache, padding=padding, segments=segments)
        if segments is not None:
            raise UsageError("documents side by side need one stretch for all, but here each length has its own")
        if not (cache is None or isinstance(cache, ReplayCache)):
            raise UsageError(f"make the cache of this network with `new_cache`, not a {type(cache).__name__}")
        new = tokens.shape[1]
        text = tokens if cache is None else cache.joined(tokens)  # from its beginning
        whole = text.shape[1] + (0 if cache is None else cache.virtual)
        length = text.new_tensor([whole]) if padding is None else padding.sum(-1)
        long = length > self.config.original_max_position_embeddings  # (batch,), or (1,) for all rows alike
        if cache is not None:
            long = long if cache.always is None else torch.full_like(long, cache.always)
            if cache.length and not torch.equal(long, cache.long):
                cache.anew(long)
                tokens = text
            cache.tokens, cache.long = text, long
        where = positions(cache, tokens.shape[1], tokens.device, padding=padding)
        frequencies = torch.where(long[:, None, None, None], self.long_frequencies, self.rotary_frequencies)
        rotary = Rotary.at(where, frequencies, scale=self.rotary_scale)
        return self.decoder(self.embed(tokens), rotary=rotary, cache=cache, padding=padding)[:, -new:]  # type: ignore[no-any-return]

    def new_cache(self) -> Cache:  # noqa: D102
        layers = self.config.num_hidden_layers
        return ReplayCache(layers) if self.config.stretched else Cache(layers)


CONFIG, NETWORK = Phi3Config, Phi3
