"""What a call of the compiled network tells the crew: where each token belongs, and who wears what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from loquela.engine import board
from loquela.engine.memory import address
from loquela.engine.outfits import Outfit
from loquela.engine.pages import PagedCache, Row
from loquela.errors import ContextWindowError, UsageError
from loquela.layers.cache import Cache

__all__ = ["CHUNK", "Call", "Steps", "check_ids", "check_room", "rows_of", "spans", "without_padding"]

CHUNK = 256
"""Tokens that go through the layers together."""
_BLOCK = 8  # tokens of one request that attend together
_SPAN = 32  # tokens of one adapter that are done together


def check_ids(tokens: Sequence[Sequence[int]], vocab_size: int) -> None:
    """Raise `UsageError` for token ids that the network does not have."""
    low, high = min((min(new) for new in tokens if new), default=0), max((max(new) for new in tokens if new), default=0)
    if low < 0 or high >= vocab_size:
        raise UsageError(f"token ids must be from 0 to {vocab_size - 1}, but are {low} to {high}")


def check_room(
    tokens: Sequence[Sequence[int]], rows: Sequence[Row], outfits: Sequence[Outfit | None], window: int
) -> int:
    """Return how far the rows reach with new `tokens`; raises an error where what they wear does not go with that."""
    furthest = 0
    for new, row, outfit in zip(tokens, rows, outfits, strict=True):
        virtual, end = 0 if outfit is None else outfit.virtual, row.length + len(new)
        if row.length and row.virtual != virtual:
            raise UsageError(
                f"a cache must go on with the {virtual} virtual positions that its row wears, but was begun with "
                f"{row.virtual}"
            )
        if virtual and end > window:
            raise ContextWindowError(
                f"{end - virtual} tokens must fit the {window - virtual} that {virtual} virtual ones leave of the "
                "context window, but do not: shorten the text"
            )
        furthest = max(furthest, end)
    return furthest


def spans(lengths: Sequence[int], outfits: Sequence[Outfit | None], first: int, last: int) -> npt.NDArray[np.int64]:
    """Return the spans (first token, count, address of the records) among the tokens from `first` to `last`.

    Each of the texts, of `lengths` tokens, wears one of the `outfits`, or None.
    """
    joined: list[tuple[int, int, Outfit]] = []
    at = 0
    for length, outfit in zip(lengths, outfits, strict=True):
        if outfit is not None:
            start = joined.pop()[0] if joined and joined[-1][1] == at and joined[-1][2] is outfit else at
            joined.append((start, at + length, outfit))
        at += length
    found = [
        (start - first, min(start + _SPAN, end, last) - start, outfit.address)
        for begin, end, outfit in joined
        for start in range(max(begin, first), min(end, last), _SPAN)
    ]
    return np.array(found, dtype=np.int64).reshape(-1, 3)


class Call:
    """Tokens of several texts, the new ones of each after what its row holds; the rows are made longer by them.

    The states of each text's `wanted` last tokens are asked for, or all. The `vectors` (n, dim) of a text that has some
    are read in place of the embeddings of its first n tokens.
    """

    def __init__(
        self,
        tokens: Sequence[Sequence[int]],
        rows: Sequence[Row],
        outfits: Sequence[Outfit | None],
        vectors: Sequence[Tensor | None] = (),
        wanted: Sequence[int] | None = None,
    ) -> None:
        self.lengths, self._outfits = [len(new) for new in tokens], outfits
        self.wanted = self.lengths if wanted is None or [*wanted] == self.lengths else [*wanted]
        self._count, self._kept = sum(self.lengths), vectors
        ids: list[int] = []
        places: list[int] = []
        pages: list[int] = []
        ends: list[int] = []
        memories: list[int] = []
        self._blocks: list[tuple[int, int]] = []
        for new, row in zip(tokens, rows, strict=True):
            start, at, count = row.length, len(places), len(new)
            row.grow(count)
            ids += new
            places += range(start, start + count)
            if count == 1:
                self._blocks.append((at, 1))
            else:  # a block lies within one chunk of the call
                edges = sorted({*range(at, at + count, _BLOCK), *range(-(-at // CHUNK) * CHUNK, at + count, CHUNK)})
                self._blocks += [(a, b - a) for a, b in zip(edges, [*edges[1:], at + count], strict=True)]
            pages += [row.table] * count
            whole = row.memory or row
            ends += [whole.length - 1] * count
            memories += [whole.table] * count
        self._words = np.array((ids, places, pages, memories, ends), dtype=np.int64)
        self._vectors = np.zeros(self._count if any(part is not None for part in vectors) else 0, dtype=np.int64)
        for part, end, length in zip(vectors, accumulate(self.lengths), self.lengths, strict=False):
            if part is not None:
                first = end - length
                self._vectors[first : first + len(part)] = address(part) + 4 * part.shape[1] * np.arange(len(part))

    def chunks(self) -> Iterator[tuple[int, int, dict[int, int]]]:
        """Yield for each chunk its first token, how many they are, and the words of the board."""
        at, stride = address(self._words), 8 * self._count
        for start in range(0, self._count, CHUNK):
            n, first = min(CHUNK, self._count - start), at + 8 * start
            held = self._blocks if n == self._count else [b for b in self._blocks if start <= b[0] < start + n]
            blocks = np.array([(a - start, b) for a, b in held], dtype=np.int64)
            words = _words(first, stride, blocks)
            words[board.VECTORS] = address(self._vectors[start:]) if len(self._vectors) else 0
            worn = None
            if any(self._outfits):
                worn = spans(self.lengths, self._outfits, start, start + n)
                words[board.SPANS] = address(worn)
            words[board.N_SPANS] = 0 if worn is None else len(worn)
            yield start, n, words

    def narrowed(self, start: int, n: int) -> tuple[npt.NDArray[np.int64], dict[int, int], object]:
        """Of the `n` tokens from `start` on, return which are wanted, and the words of the board for these alone.

        What comes third must be kept as long as the words are used.
        """
        pairs = zip(accumulate(self.lengths), self.wanted, strict=True)
        parts = (range(max(start, end - count), min(start + n, end)) for end, count in pairs)
        chosen = np.array([i for part in parts for i in part], dtype=np.int64)
        own = np.ascontiguousarray(self._words[:, chosen])
        held = [at for at, _ in self._blocks if start <= at < start + n]
        of = np.searchsorted(np.array(held, dtype=np.int64), chosen, side="right")
        at = np.flatnonzero(np.diff(of, prepend=-1))
        blocks = np.stack((at, np.diff(at, append=len(of))), axis=1)
        return chosen - start, _words(address(own), 8 * len(chosen), blocks), (own, blocks)


def rows_of(caches: Sequence[Cache]) -> list[Row]:
    """The row of each of several caches."""
    rows = []
    for cache in caches:
        if not isinstance(cache, PagedCache) or len(cache.rows) != 1:
            raise UsageError("the compiled engine needs caches of one row that it made")
        rows += cache.rows
    return rows


def without_padding(rows: list[list[int]], padding: Tensor | None) -> list[list[int]]:
    """The tokens of each row, without what fills it up."""
    if padding is None:
        return rows
    return [
        [token for token, there in zip(row, real, strict=True) if there]
        for row, real in zip(rows, padding.tolist(), strict=True)
    ]


class Steps:
    """What a `Call` says of one new token for each of up to `most` texts, in memory that is used again and again."""

    def __init__(self, most: int) -> None:
        self._rows = np.zeros((5, most), dtype=np.int64)
        self._held: Any = memoryview(self._rows.reshape(-1))  # type: ignore[arg-type]  # quicker than an array to write into
        self._most, self._blocks = most, np.stack((np.arange(most), np.ones(most, dtype=np.int64)), axis=1)
        self._words = _words(address(self._rows), 8 * most, self._blocks) | {board.VECTORS: 0, board.N_SPANS: 0}

    def take(
        self, tokens: Sequence[Sequence[int]], rows: Sequence[Row], outfits: Sequence[Outfit | None]
    ) -> dict[int, int]:
        """Make each row longer by its token; return the words of the board, for as long as nothing else is taken."""
        held, most = self._held, self._most
        for at, ((token,), row) in enumerate(zip(tokens, rows, strict=True)):
            place = row.length
            row.grow(1)
            whole = row.memory or row
            held[at], held[most + at], held[2 * most + at] = token, place, row.table
            held[3 * most + at], held[4 * most + at] = whole.table, whole.length - 1
        words = self._words
        words[board.N_BLOCKS] = len(rows)
        if any(outfits):
            self._worn = spans([1] * len(rows), outfits, 0, len(rows))
            words = words | {board.SPANS: address(self._worn), board.N_SPANS: len(self._worn)}
        return words


def _words(first: int, stride: int, blocks: npt.NDArray[np.int64]) -> dict[int, int]:
    """The words of the board for tokens whose rows of `Call` stand from `first` on, `stride` bytes apart."""
    rows = board.TOKENS, board.POSITIONS, board.PAGES, board.MEMORY, board.ENDS
    words = {word: first + number * stride for number, word in enumerate(rows)}
    return words | {board.BLOCKS: address(blocks), board.N_BLOCKS: len(blocks)}
