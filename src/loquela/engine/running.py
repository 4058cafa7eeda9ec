"""A program, the crew that runs it, and the memory that a call needs beside the buffers."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from loquela.engine import board
from loquela.engine.angles import Angles
from loquela.engine.attending import ROWS
from loquela.engine.building import HEAD_ROWS, Built
from loquela.engine.calls import Call, Steps, spans
from loquela.engine.crew import Crew
from loquela.engine.memory import address, aligned
from loquela.engine.outfits import Closet, Outfit
from loquela.engine.pages import Row
from loquela.engine.seen import Seen
from loquela.engine.sources import read_sources

__all__ = ["Runner"]


class Runner:
    """Runs the parts of a network's program for rows of tokens and what they wear."""

    def __init__(self, built: Built, closet: Closet, threads: int) -> None:
        self.built, self._closet = built, closet
        self._crew = Crew(2 * len(built.program.ops), threads)
        self._scratch: npt.NDArray[np.uint8] = aligned(0)
        self._low: npt.NDArray[np.uint8] = aligned(0)
        self._reach = 0
        self._nowhere = np.zeros(HEAD_ROWS, dtype=np.int64)
        self._nowhere_at = address(self._nowhere)
        self._steps = Steps(HEAD_ROWS)
        self._logits = built.logits.held.numpy()
        self._known = built.known.held.numpy().view(np.float64)
        self._load(frozenset())

    def _load(self, reached: frozenset[int]) -> None:
        """Give the crew the operations of rows without adapters, and of calls in which some have one."""
        self._reached = reached
        plain, parts = self.built.table(frozenset())
        dressed, others = self.built.table(reached)
        self._parts = {False: parts, True: {k: (a + len(plain), b + len(plain)) for k, (a, b) in others.items()}}
        self._crew.load(plain + dressed)

    def prepare(self, position: int) -> None:
        """Have angles, biases and room for scores up to a position."""
        if position < self._reach:
            return
        self._reach = self.built.reach(position)
        padded, scores = self.built.program.most_padded, (self._reach + 32) * 4
        self._scratch_stride = 64 + ROWS * (8 * padded + scores)
        self._scratch = aligned(self._scratch_stride * self._crew.threads)
        self._scratch_at = address(self._scratch)
        for me in range(self._crew.threads):
            self._scratch[me * self._scratch_stride :][:8].view(np.int64)[0] = scores

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
        """Return the last hidden states (new, dim) of each row's new tokens; the rows hold them then.

        `vectors` (tokens, dim) are read in place of the first row's own. `long` texts are turned by their angles.
        Where only the last `wanted` states of each row are, no others go further than the last layer's keys and values.
        """
        dressed = any(outfits)
        call = Call(tokens, rows, outfits, [vectors], None if dressed else wanted)
        own, parts, out = self._own(outfits, self.built.angles[long]), self._parts[dressed], self.built.out
        found: list[Tensor] = []
        for start, n, words in call.chunks():
            if call.wanted is call.lengths:
                self._crew.run(*parts["body"], n, words | own)
                found.append(out.held[:n].clone())
                continue
            self._crew.run(*parts["layers"], n, words | own)
            found.append(self._end(call, start, n, words | own))
        if len(call.lengths) == 1 and len(found) == 1:
            return found
        return list(torch.split(torch.cat(found), call.wanted))

    def _end(self, call: Call, start: int, n: int, words: dict[int, int]) -> Tensor:
        """Return the states of the wanted tokens of a chunk whose keys and values are stored: their rows close up."""
        chosen, fewer, _kept = call.narrowed(start, n)
        if not len(chosen):
            return torch.empty(0, self.built.out.width)
        assert self.built.queries is not None
        for buffer in (self.built.stream, self.built.queries):
            buffer.held[: len(chosen)] = buffer.held[torch.from_numpy(chosen)]
        self._crew.run(*self._parts[False]["end"], len(chosen), words | fewer)
        return self.built.out.held[: len(chosen)].clone()

    def read(self, sources: Sequence[Sequence[int]], outfits: Sequence[Outfit | None]) -> list[Row]:
        """Return what the decoder looks at of each source; see `loquela.engine.sources`."""
        own = self._own(outfits, self.built.angles[0])
        parts = self._parts[any(outfits)]

        def run(names: Sequence[str], n: int, words: dict[int, int]) -> None:
            self._crew.run(parts[names[0]][0], parts[names[-1]][1], n, words | own)

        return read_sources(self.built, sources, outfits, run)

    def step(
        self, tokens: Sequence[Sequence[int]], rows: Sequence[Row], outfits: Sequence[Outfit | None]
    ) -> list[Seen]:
        """Return what comes after one new token of each of up to `HEAD_ROWS` rows, in one run of the crew."""
        own = self._own(outfits, self.built.angles[0])
        words, ops = self._steps.take(tokens, rows, outfits), self._parts[any(outfits)]["step"]
        self._run_head(ops, len(rows), words | own)
        return self._seen(len(rows))

    def outlooks(self, hidden: Tensor, outfits: Sequence[Outfit | None]) -> list[Seen]:
        """Return what comes after hidden states (n, dim)."""
        return [seen for _, n in self._predict("predict", hidden, outfits) for seen in self._seen(n)]

    def _seen(self, n: int) -> list[Seen]:
        """What the last run found. Most outlooks are gone before the next run; who is left then takes a copy."""
        found = [Seen(self._logits[row], self._known[row]) for row in range(n)]
        self.built.logits.lent = [weakref.ref(seen) for seen in found]
        return found

    def _run_head(self, ops: tuple[int, int], n: int, words: dict[int, int]) -> None:
        for lent in self.built.logits.lent:
            if (seen := lent()) is not None:
                seen.keep()
        self.built.logits.lent.clear()
        self._crew.run(*ops, n, words)

    def logits(self, hidden: Tensor, outfits: Sequence[Outfit | None]) -> npt.NDArray[np.float32]:
        """Return the logits (n, vocab) of hidden states (n, dim)."""
        found = np.empty((len(hidden), self.built.logits.width), dtype=np.float32)
        for start, n in self._predict("head", hidden, outfits):
            found[start : start + n] = self._logits[:n]
        return found

    def _predict(self, part: str, hidden: Tensor, outfits: Sequence[Outfit | None]) -> Iterator[tuple[int, int]]:
        """Run the head for some hidden states after others; yield the first, and how many they are."""
        own = self._words(outfits) | {board.POSITIONS: self._nowhere_at}
        ops = self._parts[any(outfits)][part]
        for start in range(0, len(hidden), HEAD_ROWS):
            states = hidden[start : start + HEAD_ROWS]
            n = len(states)
            self.built.head_in.held[:n] = states
            own[board.N_SPANS] = 0
            if any(outfits):
                worn_here = spans([1] * len(hidden), outfits, start, start + n)
                own |= {board.SPANS: address(worn_here), board.N_SPANS: len(worn_here)}
            self._run_head(ops, n, own)
            yield start, n

    def _own(self, outfits: Sequence[Outfit | None], angles: Angles) -> dict[int, int]:
        """The words that are the same for all pieces of a call."""
        return self._words(outfits) | {
            board.ANGLES: angles.address,
            board.SCRATCH: self._scratch_at,
            board.SCRATCH_STRIDE: self._scratch_stride,
        }

    def _words(self, outfits: Sequence[Outfit | None]) -> dict[int, int]:
        """Have the operations and the thin rows that these outfits need."""
        reached = self._closet.reached  # lets go of what was taken off, too
        if not any(outfits):
            return {}
        if reached != self._reached:
            self._load(reached)
        stride = 4 * max(outfit.low for outfit in outfits if outfit is not None)
        if (size := self.built.program.most_rows * stride) > len(self._low):
            self._low = aligned(size)
        return {board.LOW: address(self._low), board.LOW_STRIDE: stride}
