"""Reading a source: the encoder's layers over all of it, and what the decoder's layers keep of its output."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from loquela.engine.building import Built
from loquela.engine.calls import CHUNK, Call
from loquela.engine.outfits import Outfit
from loquela.engine.pages import Row

__all__ = ["read_sources"]

Run = Callable[[Sequence[str], int, dict[int, int]], None]
"""Runs parts of the program, which stand side by side, for so many rows, with these words on the board."""


def read_sources(
    built: Built, sources: Sequence[Sequence[int]], outfits: Sequence[Outfit | None], run: Run
) -> list[Row]:
    """Return what the decoder looks at of each source, and of the virtual positions before it, as pages.

    Sources that go through the layers at once do so; a longer one goes piece by piece through each layer, since the
    queries of one piece look at the keys of all. Either way a row has the bits that it has alone.
    """
    program = built.program
    layers = len([part for part in built.parts if part.startswith("layer ")])
    given = [outfit.vectors() if outfit is not None and outfit.virtual_source else None for outfit in outfits]
    sources = [[0] * (0 if part is None else len(part)) + [*ids] for part, ids in zip(given, sources, strict=True)]
    memories: list[Row] = []
    at = 0
    while at < len(sources):
        end = at + 1
        while end < len(sources) and sum(map(len, sources[at : end + 1])) <= CHUNK:
            end += 1
        tokens, worn = sources[at:end], outfits[at:end]
        rows = [Row(program.source.bytes) for _ in tokens]
        kept = [Row(program.memory.bytes) for _ in tokens]
        call = Call(tokens, rows, worn, given[at:end])
        if sum(call.lengths) <= CHUNK:
            whole = ["entry", *(f"layer {number}" for number in range(layers))]
            for _, n, words in call.chunks():
                run(whole, n, words)
            for _, n, words in Call(tokens, kept, worn).chunks():
                run(["memory"], n, words)
        else:
            _piecewise(built, call, Call(tokens, kept, worn), layers, run)
        memories += kept
        at = end
    return memories


def _piecewise(built: Built, call: Call, keep: Call, layers: int, run: Run) -> None:
    stream = torch.empty(sum(call.lengths), built.stream.width)
    inside = built.stream.held
    for start, n, words in call.chunks():
        run(["entry"], n, words)
        stream[start : start + n] = inside[:n]
    for number in range(layers):
        for part in (f"keys {number}", f"layer {number}"):
            for start, n, words in call.chunks():
                inside[:n] = stream[start : start + n]
                run([part], n, words)
                if part.startswith("layer"):
                    stream[start : start + n] = inside[:n]
    for start, n, words in keep.chunks():
        inside[:n] = stream[start : start + n]
        run(["memory"], n, words)
