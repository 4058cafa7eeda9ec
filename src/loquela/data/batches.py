"""Which tokens a step sees: shuffled blocks for training, every token once for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from loquela.data.batch import IGNORED
from loquela.errors import DataError, UsageError

__all__ = ["IGNORED", "BlockOrder", "evaluation_blocks", "shares"]

Tokens = npt.NDArray[Any]
Words = npt.NDArray[np.uint64]
_ROUNDS = 8


class BlockOrder:
    """The order of training blocks, a pure function of (seed, step): no state, no list, any size at once.

    An epoch cuts the tokens into blocks side by side, from an offset of its own, and takes each exactly once in an
    order of its own. The order is a keyed permutation (a Feistel network that walks its cycle until it is in range;
    Black and Rogaway, "Ciphers with arbitrary finite domains", 2002), so nothing is stored. The blocks of all epochs
    stand in one endless row and a step takes the next `batch_size` of it, across the border of an epoch if need be.

    Raises `DataError` when the text is shorter than one block and its next token.
    """

    def __init__(self, n_tokens: int, block: int, batch_size: int, seed: int) -> None:
        if n_tokens < block + 1:
            raise DataError(
                f"the training text must have at least {block + 1:,} tokens (block_size {block:,} and the next token), "
                f"but has {n_tokens:,}; use a longer text or a smaller block_size"
            )
        targets = n_tokens - 1  # the first token is nobody's next
        self.block, self.batch_size = block, batch_size
        self.blocks_per_epoch = max(1, (targets - block + 1) // block)
        self._offsets = targets - self.blocks_per_epoch * block + 1
        self._seed = np.array([seed & 0xFFFF_FFFF_FFFF_FFFF], dtype=np.uint64)
        # Two halves of `bits` bits each: the smallest such square that holds an epoch, at most four times too large.
        self._bits = np.uint64(max(1, ((self.blocks_per_epoch - 1).bit_length() + 1) // 2))

    def indices(self, step: int, rank: int = 0, world: int = 1) -> npt.NDArray[np.int64]:
        """Return where the blocks of a step (from 0) start; a block is `block` tokens and their next.

        (batch_size,) for all of them, or those that fall to one of `world` ranks: neighbours in the global batch, so
        that the batch is the same however many ranks share it.
        """
        rows = shares(self.batch_size, rank, world)
        return self.starts(np.uint64(step * self.batch_size) + np.arange(rows.start, rows.stop, dtype=np.uint64))

    def starts(self, row: Words) -> npt.NDArray[np.int64]:
        """Return where the blocks with these numbers in the endless row start, (n,)."""
        epoch, index = np.divmod(row, np.uint64(self.blocks_per_epoch))
        *keys, offset = self._keys(epoch)
        starts: Words = offset % np.uint64(self._offsets) + self._permuted(np.array(keys), index) * np.uint64(
            self.block
        )
        return starts.astype(np.int64)

    def blocks(self, tokens: Tokens, starts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the blocks that start there, each with its next token: (len(starts), block + 1)."""
        return np.stack([tokens[start : start + self.block + 1] for start in starts]).astype(np.int64)

    def _keys(self, epoch: Words) -> Words:
        """Return the numbers that belong to each epoch of `epoch` (n,): (rounds + 1, n)."""
        return _mix(_mix(epoch ^ _mix(self._seed)) + np.arange(_ROUNDS + 1, dtype=np.uint64)[:, None])

    def _permuted(self, keys: Words, index: Words) -> Words:
        index = self._feistel(keys, index)
        while (outside := index >= self.blocks_per_epoch).any():
            index[outside] = self._feistel(keys[:, outside], index[outside])
        return index

    def _feistel(self, keys: Words, index: Words) -> Words:
        mask = (np.uint64(1) << self._bits) - np.uint64(1)
        left, right = index >> self._bits, index & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        joined: Words = (left << self._bits) | right
        return joined


def shares(batch_size: int, rank: int, world: int) -> slice:
    """Return which rows of a global batch one of `world` ranks computes; raises `UsageError` if they do not divide."""
    if batch_size % world:
        raise UsageError(
            f"the samples of one update must be a multiple of the {world} processes, but are {batch_size}: change "
            "per_device_train_batch_size or gradient_accumulation_steps"
        )
    share = batch_size // world
    return slice(rank * share, (rank + 1) * share)


def _mix(x: Words) -> Words:
    """Scramble 64-bit words (the finaliser of splitmix64; Steele, Lea and Flood, 2014)."""
    x = x + np.uint64(0x9E37_79B9_7F4A_7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
    mixed: Words = x ^ (x >> np.uint64(31))
    return mixed


def evaluation_blocks(tokens: Tokens, block: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (inputs, labels), both (batch, block) int64, that ask for every token but the first exactly once.

    Blocks stand side by side; the last is short and filled up with token 0 under the label -100. The last batch may
    have fewer rows.
    """
    targets = len(tokens) - 1
    for first in range(0, targets, block * batch_size):
        count = min(block * batch_size, targets - first)
        rows = -(-count // block)
        inputs = np.zeros(rows * block, dtype=np.int64)
        labels = np.full(rows * block, IGNORED, dtype=np.int64)
        inputs[:count] = tokens[first : first + count]
        labels[:count] = tokens[first + 1 : first + 1 + count]
        yield torch.from_numpy(inputs.reshape(rows, block)), torch.from_numpy(labels.reshape(rows, block))
