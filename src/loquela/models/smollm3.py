"""SmolLM3 (2025, huggingface.co/blog/smollm3): LLaMA that does without positions in every fourth layer (NoPE)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from loquela.errors import ConfigError
from loquela.layers.positions import Rotary
from loquela.models.llama import Llama, LlamaConfig


@dataclass
class SmolLM3Config(LlamaConfig):
    """config.json of SmolLM3; `no_rope_layers` has a 1 for each layer that rotates and a 0 for each that does not."""

    model_type: ClassVar[str] = "smollm3"
    hf_architecture: ClassVar[str] = "SmolLM3ForCausalLM"
    inert: ClassVar[frozenset[str]] = frozenset({"max_window_layers"})
    fixed: ClassVar[dict[str, tuple[Any, ...]]] = {}
    default_theta: ClassVar[float] = 2_000_000.0

    vocab_size: int = 128256
    hidden_size: int = 2048
    num_hidden_layers: int = 36
    num_attention_heads: int = 16
    num_key_value_heads: int | None = 4
    max_position_embeddings: int = 32768
    tie_word_embeddings: bool = True
    no_rope_layers: list[int] | None = None
    no_rope_layer_interval: int = 4
    use_sliding_window: bool = False
    sliding_window: int | None = None
    layer_types: list[str] | None = None

    def complete(self) -> None:
        """Write out what each layer is: where a sliding window is used, the layers without positions have it."""
        layers = self.num_hidden_layers
        if self.no_rope_layers is None:
            self.no_rope_layers = [int((layer + 1) % self.no_rope_layer_interval != 0) for layer in range(layers)]
        rotating = self.no_rope_layers
        if not isinstance(rotating, list) or len(rotating) < layers or not all(r in (0, 1) for r in rotating):
            raise ConfigError(f"no_rope_layers must be 0 or 1 for each of {layers} hidden layers, but is {rotating!r}")
        if not self.use_sliding_window:
            self.sliding_window = None
        if self.layer_types is None:
            self.layer_types = [
                "full_attention" if rotates or self.sliding_window is None else "sliding_attention"
                for rotates in rotating[:layers]
            ]

    def windows(self) -> list[int | None]:  # noqa: D102
        return self.windows_by_type(self.layer_types, self.sliding_window)


class SmolLM3(Llama):
    """The decoder-only transformer of SmolLM3."""

    config: SmolLM3Config

    def rotary(self, where: Tensor) -> Sequence[Rotary | None]:  # noqa: D102
        assert self.config.no_rope_layers is not None
        rotary = Rotary.at(where, self.rotary_frequencies, scale=self.rotary_scale)
        return [rotary if rotates else None for rotates in self.config.no_rope_layers]


CONFIG, NETWORK = SmolLM3Config, SmolLM3
