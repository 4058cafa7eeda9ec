"""Sources and the targets that belong to them: two files line by line, or two fields of each row of one file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from loquela.data.batch import Batch, Ids
from loquela.data.batches import BlockOrder, Tokens, shares
from loquela.data.files import characters
from loquela.data.objectives import Pair
from loquela.data.rows import BadRow, read_rows
from loquela.data.samples import HELD_OUT, Task
from loquela.errors import DataError
from loquela.text.tokenizer import Tokenizer

__all__ = ["Bitext", "Pairs", "TextPair", "is_held_out", "read_pairs"]

_POOL = 32
"""Batches that are sorted by length together: their rows are of like lengths, so that little is filled up."""
_SHOWN = 3
_TOGETHER = 4096
TextPair = tuple[str, str]


def read_pairs(
    source: str, target: str, rows: str | None = None, *, encoding: str = "utf-8", notes: list[str] | None = None
) -> Iterator[TextPair]:
    """Yield the pairs of two files, a text per line in both; or of a file of `rows`, whose fields they name.

    A pair with nothing on one of its sides is left out, and how many are is appended to `notes`. Raises `DataError`
    for files of different lengths, rows that cannot be read and a set without any pair; and what reading a file raises.
    """
    notes = [] if notes is None else notes
    empty = kept = 0
    for one, other in _rows(rows, source, target, encoding, notes) if rows else _lines(source, target, encoding, notes):
        if one.strip() and other.strip():
            kept += 1
            yield one, other
        else:
            empty += 1
    where = rows or f"{source} and {target}"
    if not kept:
        raise DataError(f"{where} must hold a source and its target, but hold none")
    if empty:
        notes.append(f"{where}: {empty:,} pairs are left out, one side of which is empty")


def _lines(source: str, target: str, encoding: str, notes: list[str]) -> Iterator[TextPair]:
    sides = [_lines_of(Path(side), encoding, notes) for side in (source, target)]
    count = 0
    while True:
        one, other = (next(side, None) for side in sides)
        if one is None and other is None:
            return
        if one is None or other is None:
            short, long = (source, target) if one is None else (target, source)
            raise DataError(
                f"{short} and {long} must have as many lines, since they belong together, but the first ends after "
                f"{count:,}"
            )
        count += 1
        yield one, other


def _lines_of(path: Path, encoding: str, notes: list[str]) -> Iterator[str]:
    if not path.is_file():
        raise DataError(
            f"{path} must be a file, a text per line, but {'is none' if path.exists() else 'does not exist'}"
        )
    rest = ""
    for part in characters(path, encoding, notes):
        *whole, rest = (rest + part).split("\n")
        yield from whole
    if rest:
        yield rest


def _rows(path: str, source: str, target: str, encoding: str, notes: list[str]) -> Iterator[TextPair]:
    bad: list[str] = []
    count = 0
    for row in read_rows(path, encoding=encoding, header=source, notes=notes):
        if isinstance(row, BadRow):
            bad.append(f"row {row.number} {row.reason}")
            continue
        fields = row.fields["translation"] if isinstance(row.fields.get("translation"), dict) else row.fields
        texts = [fields.get(name) for name in (source, target)]
        if not all(isinstance(text, str) for text in texts):
            bad.append(f"row {row.number} must have a text under {source!r} and {target!r}")
            continue
        count += 1
        yield str(texts[0]), str(texts[1])
    if bad:
        more = f" and {len(bad) - _SHOWN:,} more" if len(bad) > _SHOWN else ""
        raise DataError(f"{path}: {'; '.join(bad[:_SHOWN])}{more}; {count:,} rows are good")


def is_held_out(pair: TextPair, fraction: float) -> bool:
    """Tell whether a pair is held out: by the hash of its source, so that all pairs of one source go together."""
    return part_of(" ".join(pair[0].lower().split())) < fraction


def part_of(text: str) -> float:
    """Return a number in [0, 1) that belongs to a text, evenly spread over texts."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


@dataclass
class Side:
    """The token ids of many texts, one after the other; text `i` is `ids[ends[i]:ends[i + 1]]`."""

    ids: Tokens
    ends: Ids

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], dtype: str) -> Side:
        """Put rows of ids one after the other."""
        ends = np.cumsum([0, *map(len, rows)])
        return cls(np.fromiter((i for row in rows for i in row), dtype=dtype, count=int(ends[-1])), ends)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> Ids:
        return self.ids[self.ends[index] : self.ends[index + 1]].astype(np.int64)

    @property
    def lengths(self) -> Ids:
        """Tokens of each text."""
        return np.diff(self.ends)


@dataclass(frozen=True)
class Bitext:
    """Pairs as token ids, some of them held out; `notes` is what is to be said aloud."""

    train: tuple[Side, Side]
    validation: tuple[Side, Side]
    train_bytes: int
    """Of the targets, in UTF-8."""
    val_bytes: int
    prompt: str
    """The first source that is held out."""
    notes: list[str] = field(default_factory=list)

    @classmethod
    def build(
        cls,
        pairs: Callable[[list[str]], Iterable[TextPair]],
        tokenizer: Tokenizer,
        *,
        longest: int,
        validation_fraction: float,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Bitext:
        """Tokenise pairs; left out, and counted, are those of more than `longest` tokens on a side."""
        notes: list[str] = []
        dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"
        parts: dict[bool, tuple[list[list[int]], list[list[int]]]] = {False: ([], []), True: ([], [])}
        n_bytes = {False: 0, True: 0}
        prompt, too_long, done = "", 0, 0
        for group in _groups(pairs(notes), _TOGETHER):
            sides = [tokenizer.encode_batch([pair[i] for pair in group], add_special_tokens=False) for i in (0, 1)]
            for pair, source, target in zip(group, *sides, strict=True):
                if max(len(source), len(target) + 1) > longest:
                    too_long += 1
                    continue
                held = is_held_out(pair, validation_fraction)
                prompt = pair[0] if held and not prompt else prompt
                n_bytes[held] += len(pair[1].encode())
                parts[held][0].append(source)
                parts[held][1].append(target)
            done += len(group)
            progress(done)
        if too_long:
            notes.append(f"{too_long:,} pairs are left out: a side has more than {longest} tokens (block_size)")
        for held, name in ((False, "to learn from"), (True, "held out")):
            if not parts[held][0]:
                raise DataError(f"the pairs must leave some {name}, but leave none of {done:,}; give more of them")
        train, validation = ((Side.of(parts[held][0], dtype), Side.of(parts[held][1], dtype)) for held in (False, True))
        return cls(train, validation, n_bytes[False], n_bytes[True], prompt, notes)


def _groups(pairs: Iterable[TextPair], size: int) -> Iterator[list[TextPair]]:
    group: list[TextPair] = []
    for pair in pairs:
        group.append(pair)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


@dataclass(frozen=True)
class PairSamples:
    """Pairs in an order of their own each epoch, batches of like lengths; a pure function of (seed, step).

    A pool of some batches is drawn, sorted by length and cut; its batches then come in an order of their own.
    """

    sides: tuple[Side, Side]
    task: Task
    batch_size: int

    @property
    def per_epoch(self) -> int:
        return len(self.sides[0])

    @cached_property
    def _order(self) -> BlockOrder:
        return BlockOrder(self.per_epoch + 1, 1, self.batch_size * _POOL, self.task.seed)

    @cached_property
    def _lengths(self) -> tuple[Ids, Ids]:
        return self.sides[0].lengths, self.sides[1].lengths

    def indices(self, step: int) -> Ids:
        """Return which pairs a step sees."""
        pool, place = divmod(step, _POOL)
        drawn = self._order.indices(pool)
        source, target = self._lengths
        drawn = drawn[np.lexsort((drawn, source[drawn], target[drawn]))]
        key = np.array([self.task.seed, HELD_OUT - 1 - pool], dtype=np.uint64)
        which = np.random.Generator(np.random.Philox(key=key)).permutation(_POOL)[place]
        return drawn[which * self.batch_size :][: self.batch_size]

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """Return the batch of a step (from 0), or the rows of it that one of `world` ranks computes."""
        rows = shares(self.batch_size, rank, world)
        return self.task.batch(_picked(self.sides, self.indices(step)[rows]), step * self.batch_size + rows.start)

    def place(self, step: int) -> str:
        """Say which samples a step sees, for a message."""
        return f"its samples are the pairs {', '.join(map(str, self.indices(step)))} of the training pairs"


@dataclass(frozen=True)
class Pairs:
    """Pairs to train on and to be validated on; see `loquela.data.samples.Material`."""

    bitext: Bitext
    task: Task

    @property
    def tokens(self) -> Tokens:  # noqa: D102
        return self.bitext.train[1].ids

    @property
    def train_tokens(self) -> int:
        """Tokens of the targets, each with its end."""
        return len(self.tokens) + len(self.bitext.train[1])

    @property
    def train_bytes(self) -> int:  # noqa: D102
        return self.bitext.train_bytes

    @property
    def val_tokens(self) -> int:  # noqa: D102
        return len(self.bitext.validation[1].ids) + len(self.bitext.validation[1])

    @property
    def val_bytes(self) -> int:
        """Bytes of the targets: each is predicted once, from its source and what comes before."""
        return self.bitext.val_bytes

    def samples(self, block: int, batch_size: int) -> PairSamples:
        """Return the training pairs."""
        return PairSamples(self.bitext.train, self.task, batch_size)

    def held_out(self, block: int, batch_size: int) -> Iterator[Batch]:
        """Yield all held-out pairs, those of like lengths together."""
        sides = self.bitext.validation
        order = np.lexsort((sides[0].lengths, sides[1].lengths))
        for first in range(0, len(order), batch_size):
            yield self.task.batch(_picked(sides, order[first : first + batch_size]), HELD_OUT + first)

    def opening(self, tokenizer: Tokenizer, limit: int) -> str:
        """Return the first source that is held out."""
        return tokenizer.decode(tokenizer.encode(self.bitext.prompt, add_special_tokens=False)[:limit])


def _picked(sides: tuple[Side, Side], indices: Ids) -> list[Pair]:
    return [Pair(sides[0][i], sides[1][i]) for i in indices]
