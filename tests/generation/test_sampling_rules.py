"""The rules against plain references in float64, and against the processors of transformers."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers
from hypothesis import assume, example, given
from hypothesis import strategies as st

from loquela.errors import LoquelaError, UsageError
from loquela.generation.rules import RULES, History, most_probable, softmax
from loquela.generation.sampling import GenerationSettings, distribution, stages

PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
NOTHING = History()
Array = npt.NDArray[np.float64]

# Few distinct values, so that ties are common; some tokens impossible from the start.
levels = st.sampled_from([-math.inf, -3.0, -1.0, 0.0, 0.5, 0.5000001, 2.0, 30.0])
logits_with_ties = st.lists(levels, min_size=1, max_size=40).filter(lambda row: max(row) > -math.inf)
logits_anywhere = st.lists(st.floats(-50, 50), min_size=1, max_size=40)
any_logits = st.one_of(logits_with_ties, logits_anywhere)
shares = st.one_of(st.sampled_from([0.0, 1e-12, 1e-6, 0.5, 0.999999, 1.0]), st.floats(0, 1))


def reference(row: list[float], k: int, p: float) -> Array:
    """Top-k, then top-p on what it left, spelled out: sort by probability, then by id; take tokens one by one."""
    largest = max(row)
    weights = {i: math.exp(x - largest) for i, x in enumerate(row) if x > -math.inf}
    order = sorted(weights, key=lambda i: (-row[i], i))
    order = order[:k] if k else order
    total = math.fsum(weights[i] for i in order)
    kept: list[int] = []
    for i in order:
        kept.append(i)
        if p < 1 and math.fsum(weights[j] for j in kept) / total >= p:  # a P of 1 keeps what is possible at all
            break
    total = math.fsum(weights[i] for i in kept)
    return np.array([weights[i] / total if i in kept else 0.0 for i in range(len(row))])


@given(any_logits, st.integers(0, 45), shares)
@example([0.0] * 10, 3, 1.0)
@example([0.0] * 10, 0, 0.5)
@example([0.0, -math.inf, 0.0], 2, 0.0)
def test_top_k_then_top_p_against_a_plain_reference(row: list[float], k: int, p: float) -> None:
    expected = reference(row, k, p)
    reached = np.cumsum(np.sort(reference(row, k, 1.0))[::-1])
    assume(p in (0.0, 1.0) or np.abs(reached - p).min() > 1e-11)  # where rounding decides, either set is right
    got = distribution(row, NOTHING, GenerationSettings(temperature=1.0, top_k=k, top_p=p))
    assert ((got > 0) == (expected > 0)).all()
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=0)
    assert abs(got.sum() - 1) < 1e-12


def test_a_probability_that_p_meets_exactly_is_reached() -> None:
    row = np.log([0.5, 0.3, 0.2])
    for p, kept in ((0.5, 1), (0.5000001, 2), (0.8, 2), (0.8000001, 3)):
        got = distribution(row, NOTHING, GenerationSettings(**PLAIN | {"top_p": p}))
        assert np.count_nonzero(got) == kept


@given(any_logits, st.integers(1, 45))
def test_top_k_keeps_exactly_k_and_of_equal_ones_the_lowest_ids(row: list[float], k: int) -> None:
    got = np.flatnonzero(np.isfinite(RULES["top_k"].apply(np.array(row), k, NOTHING)))
    order = sorted((i for i, x in enumerate(row) if x > -math.inf), key=lambda i: (-row[i], i))
    assert got.tolist() == sorted(order[:k])
    assert most_probable(np.array(row), k).tolist() == order[:k]


@given(any_logits)
def test_temperature_0_is_greedy_is_top_k_1(row: list[float]) -> None:
    best = np.zeros(len(row))
    best[int(np.argmax(row))] = 1
    for settings in ({"temperature": 0}, {"do_sample": False}, {"top_k": 1}, {"top_p": 0.0, "temperature": 1.0}):
        got = distribution(row, NOTHING, GenerationSettings(**settings))
        assert (got == best).all(), settings


@given(any_logits, st.floats(1e-300, 1e300))
def test_any_temperature_gives_a_distribution_in_the_same_order(row: list[float], temperature: float) -> None:
    got = distribution(row, NOTHING, GenerationSettings(**PLAIN | {"temperature": temperature}))
    assert abs(got.sum() - 1) < 1e-9
    assert got[int(np.argmax(row))] == got.max()
    assert not got[np.isneginf(row)].any()


@given(any_logits, st.floats(0, 1, exclude_min=True))
def test_min_p_keeps_what_is_within_a_share_of_the_likeliest(row: list[float], share: float) -> None:
    before = softmax(np.array(row))
    assume(np.abs(before - share * before.max()).min() > 1e-12 * before.max())
    got = distribution(row, NOTHING, GenerationSettings(**PLAIN | {"min_p": share}))
    assert ((got > 0) == (before >= share * before.max())).all()


def test_the_order_is_penalties_temperature_top_k_top_p_min_p() -> None:
    penalties = {"repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias"}
    assert tuple(RULES)[-4:] == ("temperature", "top_k", "top_p", "min_p")
    assert penalties <= set(tuple(RULES)[:-4])
    row = np.log([0.4, 0.3, 0.2, 0.1])
    # top-p on what top-k left: 0.4 / 0.7 reaches 0.55, 0.4 alone would not
    kept = distribution(row, NOTHING, GenerationSettings(temperature=1.0, top_k=2, top_p=0.55))
    assert np.count_nonzero(kept) == 1
    # temperature before top-p: heat spreads the distribution until 0.45 needs two tokens
    kept = distribution(row, NOTHING, GenerationSettings(temperature=4.0, top_k=0, top_p=0.35))
    assert np.count_nonzero(kept) == 2
    # … and after it, the set is that of the model's own distribution
    kept = distribution(
        row, NOTHING, GenerationSettings(temperature=4.0, top_k=0, top_p=0.35, sampler_order="top_p,temperature")
    )
    assert np.count_nonzero(kept) == 1
    # min-p against the likeliest of what is left
    kept = distribution(row, NOTHING, GenerationSettings(temperature=1.0, top_k=3, top_p=0.9, min_p=0.7))
    assert np.flatnonzero(kept).tolist() == [0, 1]
    # penalties change who is among the top k
    kept = distribution(row, History((), (0,)), GenerationSettings(temperature=1.0, top_k=1, presence_penalty=2))
    assert np.flatnonzero(kept).tolist() == [1]


def test_named_rules_exchange_places_and_the_others_stay() -> None:
    order = GenerationSettings(sampler_order=("top_k", "top_p", "min_p", "temperature")).sampler_order
    assert order[:-4] == tuple(RULES)[:-4]
    assert order[-4:] == ("top_k", "top_p", "min_p", "temperature")
    assert GenerationSettings(sampler_order="min_p,repetition_penalty").sampler_order[0] == "min_p"
    with pytest.raises(UsageError, match="names 'top_q'"):
        GenerationSettings(sampler_order="top_q")
    with pytest.raises(UsageError, match="once"):
        GenerationSettings(sampler_order="top_k,top_k")


@given(any_logits, st.integers(0, 10), st.floats(0, 1), st.floats(0, 1), st.floats(0, 3), st.data())
def test_stages_are_the_sampler(row: list[float], k: int, p: float, m: float, t: float, data: st.DataObject) -> None:
    order = data.draw(st.permutations(["temperature", "top_k", "top_p", "min_p"]))
    settings = GenerationSettings(top_k=k, top_p=p, min_p=m, temperature=t, sampler_order=order, presence_penalty=1)
    history = History((), tuple(data.draw(st.lists(st.integers(0, len(row) - 1), max_size=3))))
    before = np.array(row)
    final = before
    for stage in stages(row, history, settings):
        assert (stage.before == final).all()
        gone = np.isneginf(stage.after) & ~np.isneginf(stage.before)
        assert stage.removed == pytest.approx(softmax(stage.before)[gone].sum(), abs=1e-12)
        final = stage.after
    assert (softmax(final) == distribution(row, history, settings)).all()
    assert (before == np.array(row)).all(), "a rule must not write into its input"


def test_rules_that_are_off_do_not_appear() -> None:
    assert not list(stages([0.0, 1.0], NOTHING, GenerationSettings(**PLAIN)))
    names = [stage.name for stage in stages([0.0, 1.0], NOTHING, GenerationSettings(top_p=0.9))]
    assert names == ["temperature", "top_k", "top_p"]


def test_penalties_by_hand() -> None:
    row = np.array([2.0, -2.0, 1.0, 0.5])
    history = History(prompt=(0, 3), completion=(1, 1, 2))
    apply = {name: rule.apply for name, rule in RULES.items()}
    assert apply["repetition_penalty"](row, 2.0, history).tolist() == [1.0, -4.0, 0.5, 0.25]
    assert apply["presence_penalty"](row, 0.5, history).tolist() == [2.0, -2.5, 0.5, 0.5]
    assert apply["frequency_penalty"](row, 0.5, history).tolist() == [2.0, -3.0, 0.5, 0.5]
    assert apply["logit_bias"](row, {0: -100.0, 3: 1.0}, history).tolist() == [-98.0, -2.0, 1.0, 1.5]
    with pytest.raises(UsageError, match="below the vocabulary's 4, but names 4"):
        apply["logit_bias"](row, {4: 1.0}, history)


@pytest.mark.parametrize("row", [[math.nan, 0.0], [math.inf, 0.0], [-math.inf, -math.inf]])
def test_logits_that_are_no_distribution_are_refused(row: list[float]) -> None:
    with pytest.raises(LoquelaError, match="logits must be finite"):
        distribution(row, NOTHING, GenerationSettings())


@pytest.mark.parametrize("seed", range(40))
def test_equal_to_the_processors_of_transformers(seed: int) -> None:
    r = np.random.default_rng(seed)
    size = int(r.integers(5, 400))
    row = r.normal(scale=3, size=size)  # no ties: transformers keeps them all
    history = History(prompt=tuple(r.integers(0, size, 6).tolist()), completion=tuple(r.integers(0, size, 3).tolist()))
    t, k, p, m = (
        float(r.uniform(0.2, 3)),
        int(r.integers(1, size + 5)),
        float(r.uniform(0, 1)),
        float(r.uniform(0, 0.5)),
    )
    penalty = float(r.uniform(0.5, 2))
    processors = transformers.LogitsProcessorList(
        [
            transformers.RepetitionPenaltyLogitsProcessor(penalty),
            transformers.TemperatureLogitsWarper(t),
            transformers.TopKLogitsWarper(k),
            transformers.TopPLogitsWarper(p),
            transformers.MinPLogitsWarper(m),
        ]
    )
    ids = torch.tensor([[*history.prompt, *history.completion]])
    expected = processors(ids, torch.tensor(row)[None]).softmax(-1)[0].numpy()
    settings = GenerationSettings(temperature=t, top_k=k, top_p=p, min_p=m, repetition_penalty=penalty)
    np.testing.assert_allclose(distribution(row, history, settings), expected, rtol=1e-9, atol=1e-15)
