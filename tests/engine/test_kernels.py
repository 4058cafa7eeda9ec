"""Every kernel against float64, on shapes that nobody would choose."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from loquela.engine import adapting, attending, board, experts, kernels, storing, vectors
from loquela.engine.bricks import ACTIVATION_CODES, bits_of_float
from loquela.engine.cached import jit
from loquela.engine.memory import address, aligned
from loquela.engine.outfits import _tiles
from loquela.engine.products import KINDS, ROOM, few_bits, multiply
from loquela.engine.quantize import GROUP, packed, quantised
from loquela.engine.storing import CACHE_KINDS

EXAMPLES = settings(max_examples=40)


@jit
def _exp(src, dst, count):  # type: ignore[no-untyped-def]
    for i in range(0, count, 16):
        vectors.store(dst + 4 * i, vectors.exp(vectors.load(src + 4 * i)))


def product(kind: str, weight: torch.Tensor, x: np.ndarray, bias: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """`x Wᵀ + bias + residual` by the engine, whatever way the weights are kept in."""
    tokens, columns = x.shape
    rows = len(weight)
    wide = -(-rows // 16) * 16
    y = np.zeros((tokens, wide), dtype=np.float32)
    added, old = np.zeros(wide, dtype=np.float32), np.zeros((tokens, wide), dtype=np.float32)
    added[:rows], old[:, :rows] = bias, residual
    if kind.startswith("int"):
        array, stride, padded = packed([quantised(weight, int(kind[3:]))], int(kind[3:]))
        given = aligned(tokens * (size := padded + padded // GROUP * 8))
        for t in range(tokens):
            row = np.ascontiguousarray(x[t])
            kernels.quantise_row(address(row), address(given) + t * size, columns, padded, GROUP, 0, padded)
        source, step = address(given), size
    else:
        array, stride, padded = weight.contiguous(), columns * weight.element_size(), columns
        source, step = address(x), x.strides[0]
    op, room = np.zeros(16, dtype=np.int64), aligned(ROOM)
    number = few_bits(int(kind[3:])) if kind.startswith("int") else KINDS[kind]
    op[1:15] = [
        number, address(array), stride, padded, rows, source, step, address(y), y.strides[0],
        address(added), 4, address(old), old.strides[0], 4,
    ]  # fmt: skip
    multiply(op, tokens, 0, wide // 16, address(room))
    return y[:, :rows]


def codes(x: np.ndarray) -> np.ndarray:
    """The int8 activations of `x` (tokens, columns), as float64; which code is nearest is a matter of float32."""
    tokens, columns = x.shape
    padded = -(-columns // GROUP) * GROUP
    wide = np.zeros((tokens, padded), dtype=np.float32)
    wide[:, :columns] = x
    groups = wide.reshape(tokens, -1, GROUP)
    largest = np.abs(groups).max(-1, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    rounded = np.rint(groups * inverse).astype(np.float64) * (largest / np.float32(127))
    return rounded.reshape(tokens, padded)[:, :columns].astype(np.float64)


@EXAMPLES
@given(
    kind=st.sampled_from(sorted(KINDS)),
    rows=st.integers(1, 70),
    columns=st.integers(1, 200),
    tokens=st.integers(1, 70),
    seed=st.integers(0, 2**16),
)
def test_a_product_is_that_of_float64(kind: str, rows: int, columns: int, tokens: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    weight = torch.from_numpy(random.standard_normal((rows, columns)).astype(np.float32))
    x = random.standard_normal((tokens, columns)).astype(np.float32)
    bias, residual = random.standard_normal(rows).astype(np.float32), random.standard_normal((tokens, rows))
    residual = residual.astype(np.float32)
    exact, seen = weight.double().numpy(), x.astype(np.float64)
    if kind.startswith("int"):
        exact, seen = quantised(weight, int(kind[3:])).dequantised(torch.float64).numpy(), codes(x)
    elif kind != "float32":
        weight = weight.to(getattr(torch, kind))
        exact = weight.double().numpy()
    y = product(kind, weight, x, bias, residual)
    expected = seen @ exact.T + bias + residual
    assert np.abs(y - expected).max() <= 2e-6 * (np.abs(seen) @ np.abs(exact.T) + 10).max()


@EXAMPLES
@given(kind=st.sampled_from(sorted(KINDS)), columns=st.integers(1, 200), seed=st.integers(0, 2**16))
def test_a_row_has_the_same_bits_beside_any_number_of_others(kind: str, columns: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    weight = torch.from_numpy(random.standard_normal((37, columns)).astype(np.float32))
    weight = weight if kind.startswith("int") else weight.to(getattr(torch, kind))
    x = random.standard_normal((67, columns)).astype(np.float32)
    nothing, none = np.zeros(37, dtype=np.float32), np.zeros((67, 37), dtype=np.float32)
    together = product(kind, weight, x, nothing, none)
    for count in (1, 2, 3, 5, 7, 12, 13, 31, 32, 33, 48):
        part = product(kind, weight, x[:count].copy(), nothing, none[:count])
        assert np.array_equal(part, together[:count])


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize(("rows", "columns"), [(700, 800), (20, 33_000)])
def test_many_rows_have_the_bits_of_few_in_wide_and_tall_matrices(kind: str, rows: int, columns: int) -> None:
    """More tiles than are spread out at once; and one that is too wide for it."""
    random = np.random.default_rng(0)
    weight = torch.from_numpy(random.standard_normal((rows, columns)).astype(np.float32))
    x = random.standard_normal((35, columns)).astype(np.float32)
    bias, residual = (random.standard_normal(shape).astype(np.float32) for shape in (rows, (35, rows)))
    together = product(kind, weight, x, bias, residual)
    for start in (0, 20):
        few = product(kind, weight, x[start : start + 15].copy(), bias, residual[start : start + 15])
        assert np.array_equal(few, together[start : start + 15])


@pytest.mark.parametrize("bits", [8, 4])
def test_codes_are_within_half_a_step(bits: int) -> None:
    weight = torch.randn(50, 77, generator=torch.Generator().manual_seed(0))
    weight[3] = 0.0
    weight[4, :5] = 1e-42  # too small for a scale
    found = quantised(weight, bits)
    assert found.codes.abs().max() <= (127 if bits == 8 else 8)
    step = found.scales.float().abs().repeat_interleave(GROUP, 1)[:, :77]
    error = (found.dequantised() - weight).abs()
    # at 4 bits the best scale may cut the largest of a group
    assert (error <= (0.5 if bits == 8 else 2.5) * step + 1e-6).all()
    assert error.square().mean().sqrt() < (0.008 if bits == 8 else 0.12) * weight.square().mean().sqrt()
    assert not found.dequantised()[3].any()


def test_what_is_rounded_already_is_rounded_to_itself() -> None:
    """So that a model saved in int8 is packed without another error."""
    once = quantised(torch.randn(40, 96, generator=torch.Generator().manual_seed(1)), 8)
    again = quantised(once.dequantised(), 8)
    assert torch.equal(once.codes, again.codes)
    assert torch.equal(once.scales, again.scales)


def test_exp_to_two_units_in_the_last_place() -> None:
    x = np.linspace(-86.9, 88, 1 << 16, dtype=np.float32)
    y = np.empty_like(x)
    _exp(address(x), address(y), len(x))
    assert np.abs(y / np.exp(x.astype(np.float64)) - 1).max() < 2.4e-7
    x = np.array([-np.inf, -1e30, -88, *[-200] * 13], dtype=np.float32)
    _exp(address(x), address(y), 16)
    assert not y[:16].any()


ACTIVATIONS: dict[int, Callable[[torch.Tensor], torch.Tensor]] = {code: f for f, code in ACTIVATION_CODES.items()}


@pytest.mark.parametrize("kind", sorted(ACTIVATIONS))
@pytest.mark.parametrize("gated", [0, 1])
def test_activations_are_those_of_torch(kind: int, gated: int) -> None:
    hidden = 83
    x = torch.cat((torch.linspace(-9, 9, hidden), torch.randn(hidden, generator=torch.Generator().manual_seed(0))))
    y = np.zeros(hidden, dtype=np.float32)
    op = np.array([0, kind, address(x), 0, hidden, gated, address(y), 0, *[0] * 8], dtype=np.int64)
    kernels.activate(op, 0, 0, 128)
    expected = ACTIVATIONS[kind](x[:hidden].double())
    expected = expected * x[hidden:].double() if gated else expected
    assert (np.abs(y - expected.numpy()) <= 1e-6 * (1 + np.abs(expected.numpy()))).all()


@pytest.mark.parametrize("centred", [0, 1])
@pytest.mark.parametrize("dim", [1, 16, 45, 96])
def test_norms_are_those_of_float64(centred: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(dim)
    x, weight, bias = (torch.randn(dim, generator=generator) * 3 + 1 for _ in range(3))
    y = np.zeros(dim, dtype=np.float32)
    eps = np.float32(1e-5).view(np.int32)
    op = np.array(
        [0, address(x), 0, address(y), 0, dim, address(weight), address(bias), centred, eps, *[0] * 6], dtype=np.int64
    )
    kernels.normalise(op, 0)
    wide = x.double()
    if centred:
        expected = F.layer_norm(wide, (dim,), weight.double(), bias.double(), 1e-5)
    else:
        expected = F.rms_norm(wide, (dim,), weight.double(), 1e-5) + bias.double()
    assert np.abs(y - expected.numpy()).max() < 2e-5


@pytest.mark.parametrize("width", [12, 50, 64])
@pytest.mark.parametrize("cache_dtype", sorted(CACHE_KINDS))
def test_keys_and_values_lie_in_a_page_where_they_are_looked_for(cache_dtype: str, width: int) -> None:
    """Attention over what was stored is that of float64 over the numbers, to within the width's rounding."""
    random = np.random.default_rng(width)
    kind, count, padded = CACHE_KINDS[cache_dtype], 27, -(-width // 16) * 16
    k, v, q = (random.standard_normal((count, width)).astype(np.float32) for _ in range(3))
    k[3], v[4], v[5, 1] = 0.0, 1e-42, 9.0  # nothing; too small for a scale; one that stands out
    page = aligned(2 * int(storing.key_block(kind, width)) + 32 * int(storing.value_row(kind, padded)))
    storing.store_all(kind, address(page), width, padded, count, address(k), address(v))
    out, sums = np.zeros((count, padded), dtype=np.float32), aligned(64 + attending.ROWS * (8 * padded + 4 * 64))
    sums[:8].view(np.int64)[0] = 4 * 64
    op = np.array(
        [0, address(q), 4 * width, 1, 1, width, 0, 0, len(page), kind, address(out), 4 * padded, padded, 0, 0, 0]
    )
    positions, pages = np.arange(count), np.array([address(page)])
    attending.attend(op, 0, count, 0, address(positions), address(positions), address(pages), address(sums))
    scores = q.astype(np.float64) @ k.T.astype(np.float64)
    scores[np.triu_indices(count, 1)] = -np.inf
    weights = np.exp(scores - scores.max(1, keepdims=True))
    expected = weights / weights.sum(1, keepdims=True) @ v
    bound = {"float32": 1e-5, "float16": 2e-2, "int8": 0.3}[cache_dtype]
    assert np.abs(out[:, :width] - expected).max() < bound
    assert np.sqrt(np.square(out[:, :width] - expected).mean()) < bound / 8


@pytest.mark.parametrize("cap", [0.0, 1.3])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("ahead", [False, True])
def test_scores_are_capped_and_biased_and_may_look_ahead(cap: float, biased: bool, ahead: bool) -> None:
    random, count, width, heads = np.random.default_rng(3), 30, 24, 2
    k, v, *q = (random.standard_normal((count, width)).astype(np.float32) for _ in range(2 + heads))
    page = aligned(2 * int(storing.key_block(0, width)) + 32 * int(storing.value_row(0, 32)))
    storing.store_all(0, address(page), width, 32, count, address(k), address(v))
    queries, out = np.ascontiguousarray(np.stack(q, 1)), np.zeros((count, heads, width), dtype=np.float32)
    sums = aligned(64 + attending.ROWS * (8 * 32 + 4 * 64))
    sums[:8].view(np.int64)[0] = 4 * 64
    far = count + 5  # of the table: further than any two are apart
    table = random.standard_normal((heads, 2 * far + 1 + 16)).astype(np.float32)
    words = np.array([address(table), far, 4 * table.shape[1]])
    op = np.array(
        [
            *[0, address(queries), 4 * width * heads, heads, 1, width, 0, 0, len(page), 0, address(out)],
            *[4 * width * heads, 32, 0, bits_of_float(cap), address(words) if biased else 0],
        ]
    )
    positions, pages = np.arange(count), np.array([address(page)])
    ends = np.full(count, count - 1) if ahead else positions
    attending.attend(op, 0, count, 0, address(positions), address(ends), address(pages), address(sums))
    for head in range(heads):
        scores = q[head].astype(np.float64) @ k.T.astype(np.float64)
        scores = cap * np.tanh(scores / cap) if cap else scores
        offsets = np.arange(count) - np.arange(count)[:, None]
        scores = scores + table[head, offsets + far] if biased else scores
        scores = scores if ahead else np.where(offsets > 0, -np.inf, scores)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        assert np.abs(out[:, head] - weights / weights.sum(1, keepdims=True) @ v).max() < 1e-5


def test_activations_may_be_capped() -> None:
    x, y = np.linspace(-90, 90, 83, dtype=np.float32), np.zeros(83, dtype=np.float32)
    op = np.array([0, 5, address(x), 0, 83, 0, address(y), 0, *[0] * 6, bits_of_float(30.0), 1])
    kernels.activate(op, 0, 0, 128)
    assert np.abs(y - 30 * np.tanh(x.astype(np.float64) / 30)).max() < 1e-5


@pytest.mark.parametrize("width", [1, 16, 45])
def test_rows_are_scaled_and_placed(width: int) -> None:
    x, places = (np.random.default_rng(i).standard_normal((3, width)).astype(np.float32) for i in range(2))
    expected = (x[1] * 2.5 + places[2], x[1] * 2.5)
    for where, wanted in zip((address(places), 0), expected, strict=True):
        y = x.copy()
        kernels.place(np.array([0, address(y), 4 * width, width, bits_of_float(2.5), where, 4 * width]), 1, 2)
        assert np.abs(y[1] - wanted).max() < 1e-6
        assert (y[[0, 2]] == x[[0, 2]]).all()


@EXAMPLES
@given(
    count=st.integers(1, 40),
    chosen=st.integers(1, 8),
    n=st.integers(1, 9),
    normalise=st.integers(0, 1),
    shared=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_a_mixture_is_that_of_float64(count: int, chosen: int, n: int, normalise: int, shared: bool, seed: int) -> None:
    """Whom the router likes best, their slots, the products of each, and the weighted sum."""
    random, width = np.random.default_rng(seed), 21
    chosen, padded = min(chosen, count), -(-count // 16) * 16
    x, beside = (random.standard_normal((n, width)).astype(np.float32) for _ in range(2))
    w = random.standard_normal((count, width, width)).astype(np.float32)
    likes, gate = (random.standard_normal((n, m)).astype(np.float32) for m in (padded, 1))
    wanted, shares = likes[:, :count].astype(np.float64), gate.astype(np.float64)
    sizes = 1 + 3 * count, n * chosen, n * chosen, count
    active, tokens, slots, places = (np.zeros(size, np.int64) for size in sizes)
    weights, zeros = np.zeros(n * chosen, np.float32), np.zeros(16, np.float32)
    taken, given_, y = (np.zeros((rows, width), np.float32) for rows in (n * chosen, n * chosen, n))
    route = [0, address(likes), 4 * padded, count, chosen, normalise, *map(address, (active, tokens, slots, weights))]
    experts.route(np.array([*route, address(places)]), n)
    gather = [0, address(x), 4 * width, address(taken), 4 * width, address(tokens), width, 0, 0, 0, 0, 0, chosen]
    for slot in range(n * chosen):
        experts.gather(np.array(gather), slot)
    table, parts = np.array([address(w[e]) for e in range(count)]), 2
    product = [0, 0, address(table), 4 * width, width, width, address(taken), 4 * width, address(given_), 4 * width]
    for piece in range(min(count, n * chosen) * parts):
        experts.experts(np.array([*product, address(active), parts, chosen, count, address(zeros)]), piece, 0)
    combine = [0, address(given_), 4 * width, address(slots), address(weights), chosen, address(y), 4 * width, width]
    combine += [address(beside), 4 * width, address(gate), 4] if shared else [0] * 4
    for t in range(n):
        experts.combine(np.array(combine), t)
    likely = np.exp(wanted - wanted.max(1, keepdims=True))
    likely /= likely.sum(1, keepdims=True)
    for t in range(n):
        best = np.argsort(-likely[t], kind="stable")[:chosen]
        share = likely[t, best] / (likely[t, best].sum() if normalise else 1)
        expected = sum(s * (w[e].astype(np.float64) @ x[t]) for s, e in zip(share, best, strict=True))
        expected = expected + beside[t] / (1 + np.exp(-shares[t])) if shared else expected
        assert np.abs(y[t] - expected).max() < 1e-4
    assert sorted(slots) == list(range(n * chosen))
    assert active[0] == len({int(e) for e in active[1 : 1 + 3 * active[0] : 3]})


@EXAMPLES
@given(
    rank=st.integers(0, 40),
    inputs=st.integers(1, 90),
    outputs=st.integers(1, 90),
    count=st.integers(1, 9),
    terms=st.integers(0, 15),
    seed=st.integers(0, 2**16),
)
def test_what_an_adapter_adds_is_that_of_float64(
    rank: int, inputs: int, outputs: int, count: int, terms: int, seed: int
) -> None:
    """Of rows 2 to 2 + count one span, with some of the terms; the other rows stay as they are."""
    draw, rows = torch.Generator().manual_seed(seed), count + 4
    x, y = torch.randn(rows, inputs, generator=draw), torch.randn(rows, outputs + 5, generator=draw)
    a, b, bias = (torch.randn(*shape, generator=draw) for shape in ((rank, inputs), (outputs, rank), (rank,)))
    scale, shift = torch.randn(2, outputs, generator=draw)
    tiles = _tiles(b).contiguous()
    given_ = [terms & 1, terms & 2, terms & 4]
    record = np.zeros(adapting.RECORD, dtype=np.int64)
    record[:13] = [
        rank, address(a), inputs, address(bias) if given_[0] else 0, 1 if terms & 8 else -1, 0, 64, address(tiles),
        outputs, 4 * 3, address(scale) if given_[1] else 0, address(shift) if given_[2] else 0, 0,
    ]  # fmt: skip
    low, zeros = np.zeros((rows, 64 + rank), dtype=np.float32), aligned(64)
    op = np.array(
        [0, 0, 1, address(x), 4 * inputs, address(y), 4 * (outputs + 5), 0, address(zeros), *[0] * 7], dtype=np.int64
    )
    before, span = y.clone(), np.array([2, count, address(record)], dtype=np.int64)
    words = np.zeros(64, dtype=np.int64)
    words[[board.LOW, board.LOW_STRIDE, board.SPANS, board.N_SPANS]] = address(low), low.strides[0], address(span), 1
    for op[0] in (board.LOWER, board.LIFT):
        for piece in range(3):
            adapting.adapt(words, op, piece, 3)
    h = x.double() @ a.double().T + (bias if given_[0] else 0)
    h = h.relu() if terms & 8 else h
    expected = before.double()
    added = expected[2 : 2 + count, 3 : 3 + outputs]
    added *= scale if given_[1] else 1
    added += (shift if given_[2] else 0) + (h @ b.double().T)[2 : 2 + count]
    assert (y - expected).abs().max() <= 3e-6 * (1 + rank * inputs) ** 0.5 * 10
    assert torch.equal(y[:2], before[:2])
    assert torch.equal(y[2 + count :], before[2 + count :])
    assert torch.equal(y[:, :3], before[:, :3])
    assert torch.equal(y[:, 3 + outputs :], before[:, 3 + outputs :])
