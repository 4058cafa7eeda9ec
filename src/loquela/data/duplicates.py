"""Documents that say the same: exactly, by their hash; nearly, by the share of their shingles that they have in common.

A shingle is five tokens in a row. The share of common shingles, |A ∩ B| / |A ∪ B|, is estimated by MinHash (Broder,
1997) in its one-permutation form (Li, Owen and Zhang, 2012): one hash per shingle, its first bits choose one of 128
bins, and each bin keeps its least value. Empty bins borrow from the next (Shrivastava and Li, 2014). Documents whose
values agree in one of 25 bands of 5 are compared (locality-sensitive hashing), and the comparison is exact.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["BINS", "Duplicates", "join", "minima", "similarity"]

BINS = 128
_BIN_BITS = np.uint64(7)
_BANDS, _BAND = 25, 5
_SHINGLE = 5
_EMPTY = np.uint32(0xFFFF_FFFF)
_MOST = 64
"""Documents of one band's value that a new one is compared with; boilerplate would fill such a list for ever."""
_CACHED = 1 << 12
"""Documents whose shingles are kept while others are compared with them."""
Words = npt.NDArray[np.uint64]
Signatures = npt.NDArray[np.uint32]


def _hashes(ids: npt.NDArray[Any]) -> Words:
    """Return the hash of every shingle of a document; of one that is shorter, of all of it."""
    ids = ids.astype(np.uint64)
    width = min(_SHINGLE, len(ids))
    count = len(ids) - width + 1
    state = np.zeros(count, dtype=np.uint64)
    for place in range(width):
        state = (state ^ ids[place : place + count]) * np.uint64(0x9FB2_1C65_1E98_DF25)
        state ^= state >> np.uint64(32)
    state *= np.uint64(0xBF58_476D_1CE4_E5B9)
    state ^= state >> np.uint64(31)
    hashes: Words = state
    return hashes


def minima(documents: Sequence[npt.NDArray[Any]]) -> Signatures:
    """Return the least value of each bin of each document (documents, BINS); 2³² - 1 where a bin is empty."""
    signatures = np.full((len(documents), BINS), _EMPTY, dtype=np.uint32)
    lengths = np.array([len(ids) for ids in documents], dtype=np.int64)
    for short in np.flatnonzero((lengths > 0) & (lengths < _SHINGLE)).tolist():
        _put(signatures, np.array([short]), _hashes(documents[short]))
    if (lengths >= _SHINGLE).any():  # all of them at once: a call for each document takes longer than its work
        owner = np.repeat(np.arange(len(documents)), lengths)
        whole = owner[: 1 - _SHINGLE] == owner[_SHINGLE - 1 :]  # no shingle reaches across documents
        _put(signatures, owner[: 1 - _SHINGLE][whole], _hashes(np.concatenate(documents))[whole])
    return signatures


def _put(signatures: Signatures, owner: npt.NDArray[np.int64], hashes: Words) -> None:
    """Let the hashes (n,), each of the document `owner` (n,), take their bins where they are less."""
    bins = (hashes >> (np.uint64(64) - _BIN_BITS)).astype(np.int64)
    np.minimum.at(signatures.reshape(-1), owner * BINS + bins, hashes.astype(np.uint32))


def join(parts: Signatures) -> Signatures:
    """Return the bins (BINS,) of a document from those of its parts (parts, BINS)."""
    joined: Signatures = parts.min(axis=0)
    return joined


def _bands(signatures: Signatures) -> Words:
    """Return one number for each band of each document (documents, bands); empty bins are filled first."""
    bins = np.ascontiguousarray(signatures.T)  # a bin after the other: twice round, and each has the next full one's
    value, steps = bins[0].copy(), np.zeros(len(signatures), dtype=np.uint64)
    filled = np.empty(bins.shape, dtype=np.uint64)
    for place in range(2 * BINS - 1, -1, -1):
        own = bins[place % BINS]
        full = own != _EMPTY
        value = np.where(full, own, value)
        steps = np.where(full, np.uint64(0), steps + np.uint64(1))
        if place < BINS:
            filled[place] = value + steps * np.uint64(0x1_0000_0001)
    keys = np.empty((_BANDS, len(signatures)), dtype=np.uint64)
    for band, key in enumerate(keys):
        key[:] = band
        for row in filled[band * _BAND : (band + 1) * _BAND]:
            key[:] = (key ^ row) * np.uint64(0x9FB2_1C65_1E98_DF25)
            key ^= key >> np.uint64(29)
    return np.ascontiguousarray(keys.T)


def similarity(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Return the share of the shingles of two documents that both have, from 0 to 1."""
    return _overlap(_distinct(a), _distinct(b))


def _distinct(ids: npt.NDArray[Any]) -> Words:
    """Return the hashes of a document's shingles in order, each once."""
    hashes = np.sort(_hashes(ids))
    return hashes[np.concatenate(([True], hashes[1:] != hashes[:-1]))]


def _overlap(one: Words, other: Words) -> float:
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)


class Duplicates:
    """Which documents say nearly what an earlier one says."""

    def __init__(self, signatures: Signatures, tokens_of: Callable[[int], npt.NDArray[Any]], threshold: float) -> None:
        self.tokens_of, self.threshold = tokens_of, threshold
        keys = _bands(signatures)
        order = np.argsort(keys, axis=None)
        ranked = keys.reshape(-1)[order]
        again = np.zeros(len(order), dtype=bool)
        again[1:] = ranked[1:] == ranked[:-1]
        again[:-1] |= again[1:].copy()
        once = order[~again]
        keys.reshape(-1)[once] = 0  # a value that comes once finds nobody
        self._keys = keys

    def _alike(self, one: Words, other: Words) -> bool:
        """Tell whether two documents share enough; sizes that are too far apart tell it without a comparison."""
        few, many = sorted((len(one), len(other)))
        return few / many >= self.threshold and _overlap(one, other) >= self.threshold

    def groups(self, *, chained: bool) -> npt.NDArray[np.int64]:
        """Return for each document the earliest one that it nearly says again, or itself (documents,).

        Compared are those before it that say nothing again, or with `chained` all before it; then the one that is
        named is the beginning of a chain, in which neighbours are alike.
        """
        first = np.arange(len(self._keys))
        lists: dict[int, list[int]] = {}
        shingles = lru_cache(_CACHED)(lambda document: _distinct(self.tokens_of(document)))

        def root_of(document: int) -> int:
            while first[document] != document:
                first[document] = first[first[document]]
                document = int(first[document])
            return document

        for document in np.flatnonzero(self._keys.any(axis=1)).tolist():
            keys = [int(key) for key in self._keys[document] if key]
            near: set[int] = {other for key in keys for other in lists.get(key, ())}
            alike = (other for other in sorted(near) if self._alike(shingles(other), shingles(document)))
            like = list(alike if chained else itertools.islice(alike, 1))
            for other in like:
                a, b = root_of(other), root_of(document)
                first[max(a, b)] = min(a, b)
            if not like or chained:
                for key in keys:
                    if len(lists.setdefault(key, [])) < _MOST:
                        lists[key].append(document)
        for document in np.flatnonzero(first != np.arange(len(first))).tolist():
            first[document] = root_of(document)
        return first
