"""What stands around a network's blocks: how tokens enter, how positions count, what the head does.

A network's own methods say what it does there, so this file knows some of them, and refuses all others by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from loquela.engine.angles import Turn, alone
from loquela.engine.bricks import kind_of, unknown
from loquela.layers.decoder import Decoder
from loquela.layers.embedding import InputEmbedding
from loquela.layers.encoder import Encoder
from loquela.layers.positions import LearnedPositions, RelativeBias, Rotary, SinusoidalPositions, alibi_slopes
from loquela.models.bart import Bart
from loquela.models.base import Network
from loquela.models.gemma2 import Gemma2
from loquela.models.gpt2 import GPT2
from loquela.models.phi3 import Phi3
from loquela.models.position_switch import PositionSwitch
from loquela.models.rotary_decoder import RotaryDecoder
from loquela.models.t5 import T5
from loquela.models.transformer import Transformer

__all__ = ["Entry", "Frame", "OfOffsets", "Reader", "frame_of"]

OfOffsets = Callable[[Tensor], Tensor]
"""From offsets (n,), a key's position minus the query's, to biases (heads, n) on the scores."""


@dataclass
class Entry:
    """`norm(scale · tokens[id] + places[position])`, each but the first where there is one."""

    name: str
    tokens: nn.Embedding
    scale: float = 1.0
    scales_given: bool = True
    """Whether vectors that are given in place of embeddings are scaled too."""
    places: Tensor | None = None
    places_name: str | None = None
    """Set where adapters can reach it."""
    norm: nn.Module | None = None


@dataclass
class Reader:
    """An encoder, and how its source enters."""

    encoder: Encoder
    entry: Entry
    biases: OfOffsets | None = None


@dataclass
class Frame:
    """All of a network but its blocks."""

    entry: Entry
    head: nn.Linear
    head_scale: float = 1.0
    head_bias: Tensor | None = None
    head_cap: float | None = None
    turns: list[Turn] = field(default_factory=list)
    """How queries and keys are turned; a second one is for texts of more than `original` tokens."""
    original: int | None = None
    biases: OfOffsets | None = None
    reader: Reader | None = None


def frame_of(network: Network) -> Frame:
    """Return what stands around the blocks; raises `UsageError` for what the engine does not know."""
    kind: Any = kind_of(network)
    whole = network.kind == "encoder-decoder"
    make = _BODIES.get(kind.decode if whole else kind.hidden)
    if make is None or not isinstance(getattr(network, "decoder", None), Decoder):
        raise unknown(f"what {network.config.model_type} does before its blocks")
    frame = make(network)
    head = _HEADS.get(kind.head)
    if head is None:
        raise unknown(f"the head of {network.config.model_type}")
    head(network, frame)
    return frame


def _name(network: Network, module: nn.Module) -> str:
    """The name by which adapters know a module, the first where it has several."""
    names: list[str] = [name for name, found in network.named_modules() if found is module]
    return names[0]


def _plain(network: Any, **options: Any) -> Entry:
    return Entry("token_embedding", network.token_embedding, **options)


# -- decoders


def _rotary(network: Any) -> Frame:
    kind: Any = kind_of(network)
    entry = _plain(network)
    if kind.embed is Gemma2.embed:
        entry.scale = float(network.token_embedding.weight.new_tensor(network.config.hidden_size**0.5))
        entry.scales_given = False
    elif kind.embed is not RotaryDecoder.embed:
        raise unknown(f"what {network.config.model_type} does before its blocks")
    return Frame(entry, network.lm_head, turns=[alone(network).rotary])


def _phi3(network: Any) -> Frame:
    frame = _rotary(network)
    if network.config.stretched:
        frequencies, scale = network.long_frequencies, network.rotary_scale
        frame.turns.append(lambda where: Rotary.at(where, frequencies, scale=scale))
        frame.original = network.config.original_max_position_embeddings
    return frame


def _gpt2(network: Any) -> Frame:
    places = network.position_embedding
    entry = _plain(network, places=places.weight, places_name="position_embedding")
    return Frame(entry, network.lm_head)


def _position_switch(network: Any) -> Frame:
    way, places, name = network.config.position, None, None
    if way == "sinusoidal":
        places = network.positions.table
    elif way == "learned":
        places, name = network.positions.weight, "positions"
    frame = Frame(_plain(network, scale=network.scale, places=places, places_name=name), network.lm_head)
    if way == "rotary":
        frame.turns = [alone(network).rotary]
    elif way == "relative":
        frame.biases = _relative(network.relative_bias)
    elif way == "alibi":
        slopes = alibi_slopes(network.config.num_attention_heads)
        frame.biases = lambda offsets: slopes[:, None] * offsets.clamp_max(0)
    return frame


def _relative(bias: RelativeBias) -> OfOffsets:
    weight = bias.table.weight

    def of(offsets: Tensor) -> Tensor:
        return weight.detach()[bias.bucket(offsets)].t()

    return of


# -- encoder-decoders


def _t5(network: Any) -> Frame:
    reader = Reader(network.encoder, _plain(network), _relative(network.encoder_bias))
    return Frame(_plain(network), network.lm_head, biases=_relative(network.decoder_bias), reader=reader)


def _transformer(network: Any) -> Frame:
    source, target = (_input(network, side) for side in (network.encoder_input, network.decoder_input))
    return Frame(target, network.lm_head, reader=Reader(network.encoder, source))


def _input(network: Network, side: InputEmbedding) -> Entry:
    if kind_of(side) is not InputEmbedding:
        raise unknown(f"an embedding of kind {kind_of(side).__name__}")
    if isinstance(side.positions, LearnedPositions):
        places = side.positions.weight[side.positions.offset :]
    elif isinstance(side.positions, SinusoidalPositions):
        places = side.positions.table
    else:
        raise unknown(f"positions of kind {kind_of(side.positions).__name__}")
    tokens: Any = side.tokens
    return Entry(_name(network, tokens), tokens, side.scale, places=places, norm=side.norm)


# -- heads


def _head_as_it_is(network: Any, frame: Frame) -> None:
    pass


def _capped_head(network: Any, frame: Frame) -> None:
    frame.head_cap = network.config.final_logit_softcapping


def _scaled_head(network: Any, frame: Frame) -> None:
    if network.config.scale_decoder_outputs:
        frame.head_scale = network.config.d_model**-0.5


def _head_with_bias(network: Any, frame: Frame) -> None:
    if bool(torch.any(network.final_logits_bias != 0)):
        frame.head_bias = network.final_logits_bias[0]


_BODIES: dict[Any, Callable[[Any], Frame]] = {
    RotaryDecoder.hidden: _rotary,
    Phi3.hidden: _phi3,
    GPT2.hidden: _gpt2,
    PositionSwitch.hidden: _position_switch,
    T5.decode: _t5,
    Transformer.decode: _transformer,
}
_HEADS: dict[Any, Callable[[Any, Frame], None]] = {
    RotaryDecoder.head: _head_as_it_is,
    GPT2.head: _head_as_it_is,
    Transformer.head: _head_as_it_is,
    Gemma2.head: _capped_head,
    T5.head: _scaled_head,
    Bart.head: _head_with_bias,
}
