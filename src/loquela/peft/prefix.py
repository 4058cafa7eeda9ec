"""Prefix tuning (Li and Liang, 2021, arXiv:2101.00190): keys and values that a decoder finds there.

Each layer and virtual token has one of each; a decoder's cache starts with them. In an encoder-decoder they stand
before the target.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from loquela.errors import ConfigError, UsageError
from loquela.layers.attention import MultiHeadAttention
from loquela.layers.cache import Cache
from loquela.layers.decoder import Decoder
from loquela.models.base import Network
from loquela.peft.base import Part, Virtual
from loquela.peft.draw import Draw
from loquela.peft.prompt import KEY, SoftPromptConfig, must_be

__all__ = ["CONFIG", "Prefix", "PrefixConfig", "make"]


@dataclass
class PrefixConfig(SoftPromptConfig):
    """adapter_config.json of prefix tuning."""

    method: ClassVar[str] = "prefix"
    peft_type: ClassVar[str] = "PREFIX_TUNING"

    encoder_hidden_size: int | None = None
    prefix_projection: bool = False
    """PEFT saves what its projection gives, so a file is read alike; a projection is not trained here."""
    init_weights: str | None = None
    """`zero`: keys and values start at zero; else N(0, 1), as PEFT's."""

    def check(self) -> None:
        """The start must be a known one."""
        super().check()
        if self.init_weights not in (None, "zero"):
            raise ConfigError(f"init_weights must be null or 'zero', but is {self.init_weights!r}")


class Prefix(Virtual):
    """The keys and values of virtual tokens (tokens, layers · 2 · heads · head_dim), a key before its value."""

    def __init__(self, embeddings: Tensor, layers: int, heads: int, step: int) -> None:
        super().__init__({KEY: embeddings})
        self.layers, self.heads, self.step = layers, heads, step

    @property
    def length(self) -> int:  # noqa: D102
        return len(self.tensors[KEY])

    def vectors(self) -> Tensor:
        """Refused: an encoder reads no keys."""
        raise UsageError("prefix tuning reaches decoders only")

    def became(self, network: Network, long: bool | None = None) -> Cache:
        """Cut the vectors into a key and a value for each layer and head."""
        dtype = next(network.get_submodule("decoder").parameters()).dtype  # an embedding may lie in fewer bits
        wide = self.tensors[KEY].to(dtype).view(self.length, self.layers * 2, self.heads, -1)
        each = wide.permute(1, 2, 0, 3)[:, None]  # (layers · 2, 1, heads, tokens, head_dim)
        cache = Cache(self.layers)
        for index, layer in enumerate(cache.layers):
            source = self.step * index % self.layers
            layer.extend(each[2 * source], each[2 * source + 1])
        return cache


def make(
    network: Network, config: PrefixConfig, draw: Draw
) -> tuple[PrefixConfig, dict[str, Part], dict[str, str], Virtual]:
    """Return the config completed from the base, and the keys and values at their start."""
    decoder = getattr(network, "decoder", None)
    if network.kind == "encoder" or not isinstance(decoder, Decoder):
        raise UsageError(
            f"prefix tuning needs a decoder with attention, but {network.config.model_type} has none: use prompt tuning"
        )
    if config.prefix_projection and draw.generator is not None:
        raise UsageError("prefix_projection must be false to train a prefix here: only what it gives is kept")
    attention = decoder.layers[0].attention
    assert isinstance(attention, MultiHeadAttention)
    layers, heads, dim = len(decoder.layers), attention.kv_heads, attention.kv_heads * attention.head_dim
    must_be(config, "num_layers", layers)
    must_be(config, "num_attention_heads", heads)
    must_be(config, "token_dim", dim)
    if network.context_length - config.num_virtual_tokens < 1:
        raise UsageError(
            f"num_virtual_tokens must leave room in the context window of {network.context_length} tokens, but is "
            f"{config.num_virtual_tokens}"
        )
    # PEFT deals the layers of a prefix out to an encoder-decoder two at a time, the second of which is not used
    step = config.num_transformer_submodules or (2 if network.kind == "encoder-decoder" else 1)
    shape = config.num_virtual_tokens, layers * 2 * dim
    start = draw.filled(0, *shape) if config.init_weights == "zero" else draw.normal(1, *shape)
    config = replace(
        config, num_layers=layers, num_attention_heads=heads, token_dim=dim, num_transformer_submodules=step
    )
    return config, {}, {}, Prefix(start, layers, heads, step)


CONFIG = PrefixConfig
