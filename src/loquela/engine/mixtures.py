"""A mixture of experts as operations; its kernels are in `loquela.engine.experts`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from loquela.engine import board as code
from loquela.engine.bricks import kind_of, unknown
from loquela.engine.buffers import Buffer
from loquela.engine.memory import address
from loquela.engine.products import KINDS
from loquela.engine.program import Program
from loquela.engine.quantize import GROUP
from loquela.layers.experts import MixtureOfExperts
from loquela.layers.feedforward import GatedFeedForward
from loquela.models.qwen2_moe import MixtureBesideShared

__all__ = ["mixture"]

_PIECE = 131072  # bytes of an expert's matrix that one thread reads in one go


def mixture(program: Program, name: str, part: MixtureOfExperts, read: Buffer, wide: Callable[..., Buffer]) -> Buffer:
    """Append a mixture of experts, called `name`; returns what it makes of `read`.

    The router computes in float32. `wide` appends the first half of a feed-forward that all tokens use.
    """
    kind, experts, count, chosen = kind_of(part), [*part.experts], len(part.experts), part.chosen
    if kind not in (MixtureOfExperts, MixtureBesideShared):
        raise unknown(f"a mixture of kind {kind.__name__}")
    if any(kind_of(expert) is not GatedFeedForward for expert in experts):
        raise unknown(f"experts of kind {kind_of(experts[0]).__name__}")
    first: Any = experts[0]
    hidden, bits, slots = first.down_proj.in_features, program.bits, program.rows * chosen
    program.most_rows = max(program.most_rows, slots)
    likes, into = program.buffer("likes", count), program.buffer("into", read.width)
    program.linear({f"{name}.router": part.router}, read, likes, bits=0, own=False)
    active, tokens, of_token, weights, places = _state(program, count, slots)
    program.add(
        code.ROUTE, likes.address, likes.stride, count, chosen, int(part.normalise), active, tokens, of_token, weights,
        places,
    )  # fmt: skip
    shared = _shared(program, name, part, read, wide) if isinstance(part, MixtureBesideShared) else (0, 0, 0, 0)
    taken, out = (program.buffer(which, read.width, slots) for which in ("taken", "given"))
    both, narrow = program.buffer("both", 2 * hidden, slots), program.buffer("narrow", hidden, slots)
    r = program.rounded(taken) if bits else None
    program.add(
        code.GATHER, read.address, read.stride, taken.address, taken.stride, tokens, read.width,
        *((r.address, r.stride, GROUP, r.padded) if r else (0, 0, 0, 0)), 0, chosen,
    )  # fmt: skip
    whose, named = (active, tokens, count, chosen), {f"{name}.experts.{i}": expert for i, expert in enumerate(experts)}
    _products(program, [_named(*expert, "gate", "up") for expert in named.items()], taken, both, whose)
    program.activate(first.activation, True, both, narrow, rounds=bits != 0, slots=chosen)
    _products(program, [_named(*expert, "down") for expert in named.items()], narrow, out, whose)
    program.add(
        code.COMBINE, out.address, out.stride, of_token, weights, chosen, into.address, into.stride, into.width, *shared
    )
    return into


def _named(name: str, expert: nn.Module, *which: str) -> dict[str, nn.Linear]:
    return {f"{name}.{part}_proj": getattr(expert, f"{part}_proj") for part in which}


def _state(program: Program, count: int, slots: int) -> tuple[int, int, int, int, int]:
    """Where it is told who uses what, the same for all layers; see `loquela.engine.experts`."""
    return tuple(  # type: ignore[return-value]
        address(program.array(name, size))
        for name, size in (
            ("active", 8 * (1 + 3 * count)),
            ("tokens", 8 * slots),
            ("slots", 8 * slots),
            ("weights", 4 * slots),
            ("places", 8 * count),
        )
    )


def _products(
    program: Program, experts: Sequence[Mapping[str, nn.Linear]], x: Buffer, y: Buffer, whose: tuple[int, ...]
) -> None:
    """`y = x Wᵀ` of each expert's matrices, side by side, with its slots; and what adapters add there.

    Experts whose matrices are stored in another way than others' have an operation of their own.
    """
    layers = [layer for expert in experts for layer in expert.values()]
    if any(layer.bias is not None for layer in layers):
        raise unknown("experts with biases")
    if len({layer.weight.shape for layer in layers}) > 1:
        raise unknown("experts of different sizes")
    active, tokens, count, chosen = whose
    sites = [program.place_sites([(name, *layer.weight.shape) for name, layer in each.items()]) for each in experts]
    first, numbers = sites[0], tuple(site.number for each in sites for site in each)
    places, rounding = (active, tokens, chosen), program.rounding(x, program.bits != 0)
    if len(first) == 1:  # else others read the input too
        scale = code.SCALE_SLOTS, numbers[0], 1, x.address, x.stride, *rounding, *places, x.width
        program.add(*scale, sites=numbers, when=True)
    before = program.weight_bytes
    ways: dict[tuple[int, ...], dict[int, int]] = {}
    for number, each in enumerate(experts):
        for kind, at, *shape in program.stored(each, program.bits)[0]:
            ways.setdefault((kind, *shape), {})[number] = at
    program.weight_bytes = before + (program.weight_bytes - before) * chosen // count
    for (kind, w_s, k, m, start), found in ways.items():
        table = program.keep(np.array([found.get(number, 0) for number in range(count)], dtype=np.int64))
        tiles, few = (m + 15) // 16, kind >= KINDS["int8"]
        given: Any = program.rounded(x) if few else x
        program.add(
            code.EXPERTS, kind, address(table), w_s, k, m, given.address, given.stride, y.address + 4 * start, y.stride,
            active, max(1, min(tiles, w_s * (tiles if few else m) // _PIECE)), chosen, count, program.zeros,
        )  # fmt: skip
    adapt = code.ADAPT_SLOTS, numbers[0], len(first), x.address, x.stride, y.address, y.stride, 0, program.zeros
    program.add(*adapt, *places, sites=numbers, when=True)


def _shared(
    program: Program, name: str, part: MixtureBesideShared, read: Buffer, wide: Callable[..., Buffer]
) -> tuple[int, int, int, int]:
    """The expert that all tokens use, and its gate."""
    expert: Any = part.shared_expert
    gate, out = program.buffer("gate", 1), program.buffer("shared", read.width)
    program.linear({f"{name}.shared_expert_gate": part.shared_expert_gate}, read, gate, bits=0, own=False)
    narrow = wide(program, f"{name}.shared_expert", expert, read, own=False)
    program.linear({f"{name}.shared_expert.down_proj": expert.down_proj}, narrow, out, bits=program.bits)
    return out.address, out.stride, gate.address, gate.stride
