"""Mistral (Jiang et al., 2023, arXiv:2310.06825): LLaMA whose layers look back a bounded number of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from loquela.models.rotary_decoder import RotaryDecoder, RotaryDecoderConfig


@dataclass
class MistralConfig(RotaryDecoderConfig):
    """config.json of Mistral; a `sliding_window` of null looks all the way back."""

    model_type: ClassVar[str] = "mistral"
    hf_architecture: ClassVar[str] = "MistralForCausalLM"

    intermediate_size: int = 14336
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 131072
    sliding_window: int | None = 4096

    def windows(self) -> list[int | None]:  # noqa: D102
        return [self.sliding_window] * self.num_hidden_layers


class Mistral(RotaryDecoder):
    """The decoder-only transformer of Mistral."""


CONFIG, NETWORK = MistralConfig, Mistral
