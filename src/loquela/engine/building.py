"""From a network to its program: the blocks and what stands around them, in parts that are run by themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

from torch import nn

from loquela.engine import board as code
from loquela.engine.angles import Angles, Biases
from loquela.engine.blocks import block
from loquela.engine.bricks import unknown
from loquela.engine.buffers import Buffer
from loquela.engine.frames import Entry, Frame, Reader
from loquela.engine.glancing import PART, WORDS
from loquela.engine.heads import Sight, keys_values
from loquela.engine.program import Program
from loquela.layers.attention import CrossAttention
from loquela.layers.decoder import Decoder
from loquela.layers.feedforward import ACTIVATIONS
from loquela.models.base import Network

__all__ = ["HEAD_ROWS", "Built", "build"]

HEAD_ROWS = 16
"""Hidden states whose logits are computed together."""


@dataclass
class Built:
    """A program, the ranges of its operations that are run by themselves, and the buffers that are read and written."""

    program: Program
    out: Buffer
    stream: Buffer
    head_in: Buffer
    logits: Buffer
    known: Buffer
    """What `loquela.engine.glancing.join` finds of each row of logits, in eight bytes each."""
    angles: list[Angles]
    """One for each way in which texts are turned: of any length, or short, then long."""
    biases: list[Biases]
    given_scale: float
    """What vectors that are given in place of embeddings are multiplied by, though they should not be."""
    places: int | None
    """How many positions have vectors of their own; None: all."""
    source: int = 0
    """How many token ids a source may have, and how many positions."""
    source_places: int | None = None
    queries: Buffer | None = None
    """What the last layer goes on with beside the stream once its keys and values are stored."""
    parts: dict[str, tuple[int, int]] = field(default_factory=dict)
    """`body` and `head`, `predict`, which is the head and what is known of its logits, `step`, all of it for a few
    tokens; of the body `layers`, up to where the last layer has its keys and values, and `end`, the rest.
    Of an encoder `entry`, for each layer `keys N` and `layer N` (the keys again, and the rest), and `memory`."""

    def table(self, reached: frozenset[int]) -> tuple[list[list[int]], dict[str, tuple[int, int]]]:
        """The operations as the crew reads them where adapters reach these sites, and where in them the parts are."""
        ops: list[list[int]] = []
        edges = sorted({edge for part in self.parts.values() for edge in part})
        places = {edges[0]: 0}
        for first, last in pairwise(edges):
            ops += self.program.table(first, last, reached)
            places[last] = len(ops)
        return ops, {name: (places[first], places[last]) for name, (first, last) in self.parts.items()}

    def reach(self, position: int) -> int:
        """Have angles and biases up to a position; return up to which there are some."""
        reached = max(angles.reach(position) for angles in self.angles)
        for biases in self.biases:
            biases.reach(reached)
        return reached


def build(network: Network, frame: Frame, program: Program, window: int) -> Built:
    """Fill the `program` of a network with such a context window.

    Raises `UsageError` for a brick that the engine does not know.
    """
    decoder = cast(Decoder, network.decoder)
    dim, vocab_size = network.dim, network.vocab_size
    angles = [Angles(turn, len(decoder.layers), window) for turn in frame.turns or (None,)]
    biases = [] if frame.biases is None else [Biases(frame.biases, ahead=False)]
    given_scale = 1.0 if frame.entry.scales_given else frame.entry.scale
    places = None if frame.entry.places is None else len(frame.entry.places)
    stream = program.buffer("stream", dim)
    head_in = program.buffer("head in", dim, HEAD_ROWS)
    logits = program.buffer("logits", vocab_size, HEAD_ROWS)
    built = Built(program, stream, stream, head_in, logits, logits, angles, biases, given_scale, places)
    _enter(program, frame.entry, stream)
    for number, layer in enumerate(decoder.layers):
        slot = angles[0].slots[number]
        turned, at = angles[0].turned if slot >= 0 else 0, biases[0].address if biases else 0
        sight = Sight(turned, slot, decoder.windows[number], at)
        stored = block(program, f"decoder.layers.{number}", layer, stream, sight)
        built.queries = program.buffer("qkv", sum(cast(Any, layer).attention.splits))
        built.parts["layers"] = 0, stored
    built.out = _leave(program, decoder.norm, stream)
    built.parts["body"] = 0, len(program.ops)
    built.parts["end"] = built.parts["layers"][1], len(program.ops)
    _head(built, frame)
    if frame.reader is not None:
        _reader(built, frame.reader, decoder)
    return built


def _enter(program: Program, entry: Entry, x: Buffer) -> None:
    program.embed(
        entry.name, entry.tokens, x, scale=entry.scale, places=entry.places, places_name=entry.places_name
    )  # fmt: skip
    if entry.norm is not None:
        program.norm(entry.norm, x, x)


def _leave(program: Program, norm: nn.Module | None, x: Buffer) -> Buffer:
    """Append the norm at the end of a stack, where there is one; returns where the last hidden states are."""
    if norm is None:
        return x
    out = program.buffer("out", x.width)
    program.norm(norm, x, out)
    return out


def _head(built: Built, frame: Frame) -> None:
    program, layers = built.program, {"lm_head": frame.head}
    stored = program.stored(layers, program.bits, frame.head_bias)
    for part, x, whole in (("step", built.out, True), ("predict", built.head_in, False)):
        start = 0 if whole else len(program.ops)
        program.scale(x, frame.head_scale)
        if program.bits:
            program.round(x)
        program.linear(layers, x, built.logits, bits=program.bits, stored=stored)
        if frame.head_cap is not None:
            program.activate(ACTIVATIONS["tanh"], False, built.logits, built.logits, rounds=False, cap=frame.head_cap)
        built.parts["head"] = start, len(program.ops)
        built.known = _glance(program, built.logits)
        built.parts[part] = start, len(program.ops)


def _glance(program: Program, logits: Buffer) -> Buffer:
    """Find what a draw wants to know first of each row; see `loquela.engine.glancing.join`."""
    parts = -(-logits.width // PART)
    each = program.buffer("parts of logits", 2 * WORDS * parts, logits.rows)
    known = program.buffer("known of logits", 2 * WORDS, logits.rows)
    program.add(code.GLANCE, logits.address, logits.stride, logits.width, each.address, each.stride, parts)
    program.add(code.JOIN, each.address, each.stride, parts, known.address, known.stride)
    return known


def _reader(built: Built, reader: Reader, decoder: Decoder) -> None:
    """An encoder, and the keys and values that each layer of the decoder makes of its output."""
    program, stream = built.program, built.stream
    ahead = None if reader.biases is None else Biases(reader.biases, ahead=True)
    built.biases += [] if ahead is None else [ahead]
    built.source = reader.entry.tokens.num_embeddings
    built.source_places = None if reader.entry.places is None else len(reader.entry.places)
    start = len(program.ops)
    _enter(program, reader.entry, stream)
    built.parts["entry"] = start, len(program.ops)
    sight = Sight(ahead=True, biases=0 if ahead is None else ahead.address)
    for number, layer in enumerate(reader.encoder.layers):
        start = len(program.ops)
        stored = block(program, f"encoder.layers.{number}", layer, stream, sight)
        built.parts[f"keys {number}"] = start, stored
        built.parts[f"layer {number}"] = start, len(program.ops)
    start = len(program.ops)
    out = _leave(program, reader.encoder.norm, stream)
    for number, (layer, pages) in enumerate(zip(decoder.layers, program.memory.layers, strict=True)):
        cross: Any = layer.cross
        assert isinstance(cross, CrossAttention)
        kv = program.buffer("kv", 2 * cross.splits[1])
        if program.bits:
            program.round(out)
        name = f"decoder.layers.{number}.cross"
        matrices = {f"{name}.k_proj": cross.k_proj, f"{name}.v_proj": cross.v_proj}
        program.linear(matrices, out, kv, bits=program.bits, own=False)
        keys_values(program, pages, kv)
    if len(program.memory.layers) != len(decoder.layers):
        raise unknown("a decoder of which some layers do not look at the source")
    built.parts["memory"] = start, len(program.ops)
