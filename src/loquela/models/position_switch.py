"""One decoder, six ways to know where a token stands: for training here, to see what positions are worth.

Blocks, norms and head are LLaMA's, so that two models differ by their `position` alone:

- `sinusoidal`  waves added to the embeddings (arXiv:1706.03762, 3.5)
- `learned`     a vector for each position added to the embeddings (GPT-2)
- `rotary`      queries and keys turned by their position (arXiv:2104.09864)
- `relative`    a learned bias on the scores, by distance, the same in all layers (T5, arXiv:1910.10683)
- `alibi`       a fixed bias on the scores that grows with distance (arXiv:2108.12409)
- `none`        the causal mask alone (arXiv:2305.19466)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from loquela.errors import ConfigError, nearest
from loquela.layers.cache import Cache, positions
from loquela.layers.positions import LearnedPositions, RelativeBias, SinusoidalPositions, alibi_bias
from loquela.models.base import Config, Rename
from loquela.models.rotary_decoder import RotaryDecoder, RotaryDecoderConfig

POSITIONS = ("sinusoidal", "learned", "rotary", "relative", "alibi", "none")
_OWN = {
    "rope_theta": "rotary",
    "rope_scaling": "rotary",
    "rope_parameters": "rotary",
    "relative_attention_num_buckets": "relative",
    "relative_attention_max_distance": "relative",
}
"""Keys that mean something for one way only."""


@dataclass
class PositionSwitchConfig(RotaryDecoderConfig):
    """config.json of this decoder; there is none of its kind in transformers."""

    model_type: ClassVar[str] = "position_switch"
    hf_architecture: ClassVar[str] = "PositionSwitchForCausalLM"

    position: str = "rotary"
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Config:
        """Read a config.json; a key that means nothing for its `position` is an error."""
        position = raw.get("position", cls.position)
        if position not in POSITIONS:
            raise ConfigError(
                f"position must be one of {', '.join(POSITIONS)}, but is {position!r}"
                f"{nearest(str(position), POSITIONS)}"
            )
        for key in raw:
            if _OWN.get(key, position) != position:
                raise ConfigError(f"{key} needs position={_OWN[key]!r}, but position is {position!r}")
        return super().from_dict(raw)

    def to_dict(self) -> dict[str, Any]:
        """Write the keys that mean something."""
        return {k: value for k, value in super().to_dict().items() if _OWN.get(k, self.position) == self.position}

    def check(self) -> None:
        """Distances must reach beyond the buckets that hold one each."""
        super().check()
        buckets, reach = self.relative_attention_num_buckets, self.relative_attention_max_distance
        if buckets < 2 or reach <= buckets // 2:
            raise ConfigError(
                "relative_attention_max_distance must be more than half of relative_attention_num_buckets, of which "
                f"there are 2 at least, but they are {reach} and {buckets}"
            )


class PositionSwitch(RotaryDecoder):
    """LLaMA's decoder with a choice of positions."""

    config: PositionSwitchConfig
    renames: ClassVar[tuple[Rename, ...]] = (
        *RotaryDecoder.renames,
        ("positions", "model.embed_positions"),
        ("relative_bias.table", "model.relative_attention_bias"),
    )

    def __init__(self, config: PositionSwitchConfig) -> None:
        super().__init__(config)
        self.positions: nn.Module | None = None
        self.relative_bias: RelativeBias | None = None
        match config.position:
            case "sinusoidal":
                self.positions = SinusoidalPositions(config.max_position_embeddings, config.hidden_size)
            case "learned":
                self.positions = LearnedPositions(config.max_position_embeddings, config.hidden_size)
            case "relative":
                self.relative_bias = RelativeBias(
                    config.num_attention_heads,
                    buckets=config.relative_attention_num_buckets,
                    max_distance=config.relative_attention_max_distance,
                )

    def hidden(  # noqa: D102
        self,
        tokens: Tensor,
        *,
        cache: Cache | None = None,
        padding: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:
        queries = tokens.shape[1]
        keys = queries + (0 if cache is None else cache.length)
        where = positions(cache, queries, tokens.device, padding=padding, segments=segments)
        x = self.token_embedding(tokens) * self.scale
        if self.positions is not None:
            x = x + self.positions(where)
        rotary = self.rotary(where) if self.config.position == "rotary" else None
        bias = self.bias(queries, keys)
        return self.decoder(x, rotary=rotary, cache=cache, padding=padding, segments=segments, bias=bias)  # type: ignore[no-any-return]

    def bias(self, queries: int, keys: int) -> Tensor | None:
        """Return what is added to the scores (heads, queries, keys) of the last `queries` of `keys` positions."""
        if self.relative_bias is not None:
            return self.relative_bias(queries, keys)  # type: ignore[no-any-return]
        if self.config.position == "alibi":
            weight = self.token_embedding.weight
            return alibi_bias(self.config.num_attention_heads, queries, keys, weight.device).to(weight.dtype)
        return None

    @property
    def scale(self) -> float:
        """√dim for embeddings that are small because they are the head too; waves would drown them (2017, 3.4)."""
        small = self.config.position == "sinusoidal" and self.config.tie_word_embeddings
        return self.config.hidden_size**0.5 if small else 1.0

    def initialise(self) -> None:
        """As LLaMA's; learned positions are N(0, 0.02) and a learned bias prefers no distance."""
        super().initialise()
        if self.scale != 1.0:
            nn.init.normal_(self.token_embedding.weight, std=1 / self.scale)
        if isinstance(self.positions, LearnedPositions):
            nn.init.normal_(self.positions.weight, std=0.02)
        if self.relative_bias is not None:
            nn.init.zeros_(self.relative_bias.table.weight)


CONFIG, NETWORK = PositionSwitchConfig, PositionSwitch
