"""Qwen2 and 2.5 (2024, arXiv:2407.10671): LLaMA with biases on queries, keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from loquela.layers.attention import MultiHeadAttention
from loquela.models.rotary_decoder import RotaryDecoder, RotaryDecoderConfig


@dataclass
class Qwen2Config(RotaryDecoderConfig):
    """config.json of Qwen2: where a sliding window is used, layers from `max_window_layers` on have it."""

    model_type: ClassVar[str] = "qwen2"
    hf_architecture: ClassVar[str] = "Qwen2ForCausalLM"
    fixed: ClassVar[dict[str, tuple[Any, ...]]] = {"use_mrope": (False,)}

    vocab_size: int = 151936
    intermediate_size: int = 22016
    num_key_value_heads: int | None = 32
    max_position_embeddings: int = 32768
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int | None = 28
    layer_types: list[str] | None = None

    def complete(self) -> None:
        """Write out what each layer is."""
        if not self.use_sliding_window:
            self.sliding_window = None
        if self.layer_types is None:
            windowed = self.sliding_window is not None
            first = self.whole_number("max_window_layers", least=0) if windowed else self.num_hidden_layers
            self.layer_types = [
                "sliding_attention" if layer >= first else "full_attention" for layer in range(self.num_hidden_layers)
            ]

    def windows(self) -> list[int | None]:  # noqa: D102
        return self.windows_by_type(self.layer_types, self.sliding_window)


class Qwen2(RotaryDecoder):
    """The decoder-only transformer of Qwen2."""

    def attention(self, brick: type[MultiHeadAttention] = MultiHeadAttention, **options: Any) -> MultiHeadAttention:  # noqa: D102
        return super().attention(brick, bias=True, out_bias=False, **options)


CONFIG, NETWORK = Qwen2Config, Qwen2
