"""Gemma 3's text model (2025, arXiv:2503.19786): Gemma 2 with QK-norm for soft caps, and two speeds of rotation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from loquela.errors import ConfigError
from loquela.layers.attention import MultiHeadAttention
from loquela.layers.positions import Rotary
from loquela.models import rope
from loquela.models.base import Config
from loquela.models.gemma2 import Gemma2, Gemma2Config

_THETAS = {"full_attention": 1_000_000.0, "sliding_attention": 10_000.0}


@dataclass
class Gemma3TextConfig(Gemma2Config):
    """config.json of Gemma 3 without its eyes; `rope_parameters` has an entry for each kind of layer.

    Older files have `rope_theta` and `rope_scaling` for the layers that look all the way back, `rope_local_base_freq`
    for those with a window, and a `sliding_window_pattern`: every so many layers, one looks all the way back.
    """

    model_type: ClassVar[str] = "gemma3_text"
    hf_architecture: ClassVar[str] = "Gemma3ForCausalLM"

    vocab_size: int = 262208
    max_position_embeddings: int = 131072
    sliding_window_pattern: int = 6
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Config:
        """Read both spellings."""
        raw = dict(raw)
        patterns = [raw.pop(key, None) for key in ("sliding_window_pattern", "_sliding_window_pattern")]
        pattern = next((given for given in patterns if given is not None), 6)
        by_kind = _by_kind(raw)
        return super().from_dict({**raw, "rope_parameters": by_kind, "sliding_window_pattern": pattern})

    def to_dict(self) -> dict[str, Any]:
        """Leave out the pattern, which `layer_types` spells out."""
        return {key: value for key, value in super().to_dict().items() if key != "sliding_window_pattern"}

    def complete(self) -> None:
        """Write out what each layer is. QK-norm has taken the place of the soft cap on scores."""
        if self.layer_types is None:
            self.layer_types = [
                "sliding_attention" if (layer + 1) % self.sliding_window_pattern else "full_attention"
                for layer in range(self.num_hidden_layers)
            ]
        super().complete()
        if self.attn_logit_softcapping is not None:
            raise ConfigError(f"attn_logit_softcapping must be null, but is {self.attn_logit_softcapping!r}")

    def rope_as_before(self) -> dict[str, Any]:  # noqa: D102
        everywhere = rope.spelled_as_before(self.rope_parameters["full_attention"])
        return everywhere | {"rope_local_base_freq": self.rope_parameters["sliding_attention"]["rope_theta"]}

    def check_rope(self) -> None:  # noqa: D102
        self.rope_parameters = {
            kind: rope.completed(self.rope_parameters.get(kind, {}), theta=theta, window=self.max_position_embeddings)
            for kind, theta in _THETAS.items()
        }


def _by_kind(raw: dict[str, Any]) -> dict[str, Any]:
    """Take the rotary settings out of a config.json, in either spelling, by kind of layer."""
    given, local = raw.pop("rope_parameters", None) or {}, raw.pop("rope_local_base_freq", None)
    if not isinstance(given, Mapping) or given.keys() - _THETAS.keys():
        raise ConfigError(f"rope_parameters must have {' and '.join(_THETAS)}, but is {given!r}")
    old = {"rope_theta": raw.pop("rope_theta", None), "rope_scaling": raw.pop("rope_scaling", None)}
    spelled = {"full_attention": old, "sliding_attention": {"rope_theta": local}}
    return {
        kind: rope.joined({**settings, "rope_parameters": given.get(kind)})["rope_parameters"]
        for kind, settings in spelled.items()
    }


class Gemma3Text(Gemma2):
    """The decoder-only transformer of Gemma 3."""

    config: Gemma3TextConfig
    local_frequencies: Tensor

    def __init__(self, config: Gemma3TextConfig) -> None:
        super().__init__(config)
        assert config.head_dim is not None
        frequencies, self.local_scale = rope.angles(config.rope_parameters["sliding_attention"], config.head_dim)
        self.register_buffer("local_frequencies", frequencies, persistent=False)

    def attention(self, brick: type[MultiHeadAttention] = MultiHeadAttention, **options: Any) -> MultiHeadAttention:  # noqa: D102
        assert self.config.head_dim is not None
        q_norm, k_norm = self.norm(self.config.head_dim), self.norm(self.config.head_dim)
        return super().attention(brick, q_norm=q_norm, k_norm=k_norm, **options)

    def angles(self) -> tuple[Tensor, float]:  # noqa: D102
        assert self.config.head_dim is not None
        return rope.angles(self.config.rope_parameters["full_attention"], self.config.head_dim)

    def rotary(self, where: Tensor) -> Sequence[Rotary]:  # noqa: D102
        assert self.config.layer_types is not None
        everywhere = Rotary.at(where, self.rotary_frequencies, scale=self.rotary_scale)
        local = Rotary.at(where, self.local_frequencies, scale=self.local_scale)
        return [local if kind == "sliding_attention" else everywhere for kind in self.config.layer_types]


CONFIG, NETWORK = Gemma3TextConfig, Gemma3Text
