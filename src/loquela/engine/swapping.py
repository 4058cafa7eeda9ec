"""Adapters that have tensors of their own in the base's place: their rows are run by a program of their own.

It is made of a copy of the network that holds these tensors. Whatever it has in common with the network's own program
is there once: matrices, laid out or not, and buffers, since never both run at once. Of a call each row goes where its
tensors are; as a row never notices those beside it, it has the bits that it has alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from loquela.engine.building import Built, build
from loquela.engine.calls import CHUNK
from loquela.engine.frames import frame_of
from loquela.engine.outfits import Closet, Outfit
from loquela.engine.pages import Row
from loquela.engine.program import Program
from loquela.engine.running import Runner
from loquela.engine.seen import Seen
from loquela.models.base import Network
from loquela.peft.wardrobe import wardrobe_of

__all__ = ["Runners"]

T = TypeVar("T")


class Runners:
    """Runs rows as `Runner` does, those that wear tensors of their own where these are.

    `window` is the network's context window in tokens.
    """

    def __init__(self, built: Built, closet: Closet, threads: int, window: int) -> None:
        self._own = Runner(built, closet, threads)
        self._built, self._closet, self._threads, self._window, self._reach = built, closet, threads, window, 0
        closet.swap = self._swapped

    def _swapped(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> Runner:
        """Return what runs the base with `tensors`, by layer and name, in place of its own; raises `UsageError`."""
        own, network = self._built.program, with_tensors(self._closet.base, tensors)
        replaced = {f"{name}.{leaf}" for name, leaves in tensors.items() for leaf in leaves}
        program = Program(CHUNK, own.quantize, own.cache_dtype, {}, own, replaced)
        return Runner(build(network, frame_of(network), program, self._window), self._closet, self._threads)

    def prepare(self, position: int) -> None:
        """Have what a text up to a position needs."""
        self._reach = max(self._reach, position)
        self._own.prepare(position)

    def compute(
        self,
        tokens: Sequence[Sequence[int]],
        rows: Sequence[Row],
        outfits: Sequence[Outfit | None],
        vectors: Tensor | None = None,
        *,
        long: bool = False,
        wanted: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """See `Runner.compute`; `vectors` are those of a single row."""

        def some(runner: Runner, which: Sequence[int]) -> list[Tensor]:
            ends = None if wanted is None else [wanted[i] for i in which]
            several = [tokens[i] for i in which], [rows[i] for i in which], [outfits[i] for i in which]
            return runner.compute(*several, vectors, long=long, wanted=ends)

        return self._each(outfits, some)

    def read(self, sources: Sequence[Sequence[int]], outfits: Sequence[Outfit | None]) -> list[Row]:
        """See `Runner.read`."""

        def some(runner: Runner, which: Sequence[int]) -> list[Row]:
            return runner.read([sources[i] for i in which], [outfits[i] for i in which])

        return self._each(outfits, some)

    def logits(self, hidden: Tensor, outfits: Sequence[Outfit | None]) -> npt.NDArray[np.float32]:
        """See `Runner.logits`."""
        if not any(outfits):
            return self._own.logits(hidden, outfits)

        def some(runner: Runner, which: Sequence[int]) -> list[npt.NDArray[np.float32]]:
            return [*runner.logits(hidden[[*which]], [outfits[i] for i in which])]

        return np.stack(self._each(outfits, some))

    def step(
        self, tokens: Sequence[Sequence[int]], rows: Sequence[Row], outfits: Sequence[Outfit | None]
    ) -> list[Seen]:
        """See `Runner.step`."""

        def some(runner: Runner, which: Sequence[int]) -> list[Seen]:
            return runner.step([tokens[i] for i in which], [rows[i] for i in which], [outfits[i] for i in which])

        return self._each(outfits, some) if any(outfits) else self._own.step(tokens, rows, outfits)

    def outlooks(self, hidden: Tensor, outfits: Sequence[Outfit | None]) -> list[Seen]:
        """See `Runner.outlooks`."""

        def some(runner: Runner, which: Sequence[int]) -> list[Seen]:
            return runner.outlooks(hidden[[*which]], [outfits[i] for i in which])

        return self._each(outfits, some) if any(outfits) else self._own.outlooks(hidden, outfits)

    def _each(self, outfits: Sequence[Outfit | None], some: Callable[[Runner, Sequence[int]], Sequence[T]]) -> list[T]:
        homes: dict[int, tuple[Runner, list[int]]] = {}
        # those who wear the same side by side: what they wear is read once
        for i, outfit in sorted(enumerate(outfits), key=lambda pair: 0 if pair[1] is None else pair[1].address):
            runner: Runner = self._own if outfit is None or outfit.runs is None else outfit.runs
            homes.setdefault(id(runner), (runner, []))[1].append(i)
        found: dict[int, T] = {}
        for runner, which in homes.values():
            runner.prepare(self._reach)
            found.update(zip(which, some(runner, which), strict=True))
        return [found[i] for i in range(len(outfits))]


def with_tensors(network: Network, tensors: Mapping[str, Mapping[str, Tensor]]) -> Network:
    """Return a copy of `network` that shares all its tensors, but for `tensors`, by layer and name."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in [*network.parameters(), *network.buffers()]}
    wardrobe = wardrobe_of(network)
    if wardrobe is not None:
        memo[id(wardrobe)] = wardrobe
        memo.update((id(part), part) for adapter in wardrobe.adapters.values() for part in adapter.parts.values())
    made = copy.deepcopy(network, memo)
    for name, leaves in tensors.items():
        layer = made.get_submodule(name)
        for leaf, value in leaves.items():
            layer._parameters[leaf] = nn.Parameter(value.detach(), requires_grad=False)
    return made
