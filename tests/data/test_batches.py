from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loquela.data.batch import IGNORED, Batch
from loquela.data.batches import BlockOrder, evaluation_blocks
from loquela.data.objectives import OBJECTIVES
from loquela.data.samples import Task
from loquela.data.special import Special
from loquela.errors import DataError, UsageError

sizes = st.tuples(st.integers(1, 40), st.integers(0, 600)).map(lambda pair: (pair[0], pair[0] + 1 + pair[1]))
"""(block, n_tokens), from the shortest text that is allowed."""
seeds = st.integers(-(2**63), 2**64 - 1)


def row(order: BlockOrder, count: int) -> np.ndarray:
    steps = -(-count // order.batch_size)
    return np.concatenate([order.indices(step) for step in range(steps)])[:count]


@given(size=sizes, batch_size=st.integers(1, 300), seed=seeds)
def test_every_block_of_an_epoch_comes_exactly_once(size: tuple[int, int], batch_size: int, seed: int) -> None:
    block, n_tokens = size
    order = BlockOrder(n_tokens, block, batch_size, seed)
    count = order.blocks_per_epoch
    starts = row(order, 3 * count)
    for epoch in range(3):
        mine = np.sort(starts[epoch * count : (epoch + 1) * count])
        assert mine[0] >= 0
        assert mine[-1] + block + 1 <= n_tokens
        assert (np.diff(mine) == block).all()  # side by side: none twice, none left out between
    assert count * block > n_tokens - 1 - 2 * block  # less than two blocks are left over


@given(size=sizes, seed=seeds, steps=st.lists(st.integers(0, 500), min_size=1, max_size=5))
def test_a_step_does_not_depend_on_the_steps_before(size: tuple[int, int], seed: int, steps: list[int]) -> None:
    block, n_tokens = size
    once = BlockOrder(n_tokens, block, 7, seed)
    for step in steps:
        assert once.indices(step).tolist() == BlockOrder(n_tokens, block, 7, seed).indices(step).tolist()


@given(size=sizes, seed=seeds, batch_sizes=st.tuples(st.integers(1, 9), st.integers(1, 90)))
def test_the_row_does_not_depend_on_the_batch_size(
    size: tuple[int, int], seed: int, batch_sizes: tuple[int, int]
) -> None:
    rows = [row(BlockOrder(size[1], size[0], batch_size, seed), 60).tolist() for batch_size in batch_sizes]
    assert rows[0] == rows[1]


@given(size=sizes, seed=seeds, step=st.integers(0, 500), share=st.integers(1, 4))
def test_the_global_batch_is_the_same_for_any_number_of_ranks(
    size: tuple[int, int], seed: int, step: int, share: int
) -> None:
    order = BlockOrder(size[1], size[0], 8 * share, seed)
    whole = order.indices(step).tolist()
    for world in (1, 2, 4, 8):
        assert np.concatenate([order.indices(step, rank, world) for rank in range(world)]).tolist() == whole
    with pytest.raises(UsageError, match="must be a multiple of the 3 processes, but are 8"):
        BlockOrder(size[1], size[0], 8, seed).indices(step, 0, 3)


def test_epochs_and_seeds_differ() -> None:
    order = BlockOrder(100_064, 64, 16, seed=1)
    count = order.blocks_per_epoch
    starts = row(order, 4 * count).reshape(4, count)
    blocks = starts // 64
    for a in range(4):
        for b in range(a):
            assert (blocks[a] == blocks[b]).mean() < 0.01  # in chance, one of `count` agrees
    assert len({int(epoch.min() % 64) for epoch in starts}) > 1  # each epoch has its own offset
    other = row(BlockOrder(100_064, 64, 16, seed=2), count)
    assert (other // 64 == blocks[0]).mean() < 0.01


def test_the_order_is_as_good_as_random() -> None:
    """Each of the 24 orders of four blocks comes about as often; the bound is five standard deviations."""
    order = BlockOrder(15, 3, 4, seed=0)
    assert order.blocks_per_epoch == 4
    n = 6_000
    seen: Counter[tuple[int, ...]] = Counter()
    for step in range(n):
        starts = order.indices(step)
        seen[tuple(np.argsort(starts).tolist())] += 1
    expected = n / 24
    assert len(seen) == 24
    assert max(abs(count - expected) for count in seen.values()) < 5 * expected**0.5


def test_neighbours_in_the_row_are_not_neighbours_in_the_text() -> None:
    starts = row(BlockOrder(64 * 10_000, 64, 100, seed=3), 9_000) // 64
    correlation = np.corrcoef(starts[:-1], starts[1:])[0, 1]
    assert abs(correlation) < 0.05


def test_every_offset_comes() -> None:
    order = BlockOrder(1000, 10, 50, seed=0)
    offsets = {int(epoch.min()) % 10 for epoch in row(order, order.blocks_per_epoch * 100).reshape(100, -1)}
    assert offsets == set(range(10))


@pytest.mark.parametrize("n_tokens", [10**9, 10**12, 2**62])
def test_huge_texts_cost_nothing(n_tokens: int) -> None:
    order = BlockOrder(n_tokens, 1024, 8, seed=5)
    for step in (0, 1, 10**9):
        starts = order.indices(step)
        assert len(set(starts.tolist())) == 8
        assert (starts >= 0).all()
        assert (starts + 1025 <= n_tokens).all()


def test_a_text_shorter_than_a_block_says_both_numbers() -> None:
    with pytest.raises(DataError, match=r"at least 65 tokens \(block_size 64 and the next token\), but has 64"):
        BlockOrder(64, 64, 1, seed=0)
    assert BlockOrder(65, 64, 3, seed=0).indices(7).tolist() == [0, 0, 0]


def test_blocks_are_tokens_and_their_next() -> None:
    tokens = np.arange(100, dtype=np.uint16)
    order = BlockOrder(100, 8, 3, seed=0)
    starts = order.indices(0)
    blocks = order.blocks(tokens, starts)
    assert blocks.dtype == np.int64
    assert blocks.tolist() == [list(range(s, s + 9)) for s in starts]


@given(n=st.integers(0, 300), block=st.integers(1, 30), batch_size=st.integers(1, 9))
def test_evaluation_asks_for_every_token_but_the_first_once(n: int, block: int, batch_size: int) -> None:
    tokens = np.arange(n, dtype=np.uint16) + 7
    asked: list[int] = []
    for inputs, labels in evaluation_blocks(tokens, block, batch_size):
        assert inputs.shape == labels.shape
        assert inputs.dtype == labels.dtype == torch.int64
        assert inputs.shape[0] <= batch_size
        assert inputs.shape[1] == block
        real = labels != IGNORED
        assert (labels[real] == inputs[real] + 1).all()
        assert (inputs[~real] == 0).all()
        asked += labels[real].tolist()
    assert asked == tokens[1:].tolist()


def test_the_causal_objective_asks_for_the_next_token() -> None:
    blocks = np.arange(12).reshape(2, 6)
    batch = Task(OBJECTIVES["causal"], Special(12), seed=0).batch(list(blocks), 0)
    assert batch.inputs.tolist() == [[0, 1, 2, 3, 4], [6, 7, 8, 9, 10]]
    assert batch.labels.tolist() == [[1, 2, 3, 4, 5], [7, 8, 9, 10, 11]]
    assert batch.inputs.dtype == batch.labels.dtype == torch.int64
    assert batch.inputs.is_contiguous()


def test_a_batch_is_cut_with_all_that_belongs_to_it() -> None:
    numbers = torch.arange(12).reshape(4, 3)
    batch = Batch(numbers, numbers + 1, source=numbers + 2, source_padding=numbers > 3, segments=numbers // 3)
    assert len(batch) == 4
    assert set(batch.arguments) == {"source", "source_padding", "segments"}
    part = batch.rows(slice(1, 3))
    assert part.padding is None
    assert part.source is not None
    assert (part.inputs.tolist(), part.labels.tolist(), part.source.tolist()) == (
        [[3, 4, 5], [6, 7, 8]],
        [[4, 5, 6], [7, 8, 9]],
        [[5, 6, 7], [8, 9, 10]],
    )
    assert Batch(numbers, numbers).arguments == {}
