"""The draw: a pure function of seed, choice and position, with the right frequencies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loquela.generation.rules import History, softmax
from loquela.generation.sampling import GenerationSettings, choose, distribution, likely, stages, uniform

probabilities = (
    st.lists(st.floats(0, 1), min_size=1, max_size=30)
    .filter(lambda row: sum(row) > 1e-3)
    .map(lambda row: np.array(row) / sum(row))
)


@given(probabilities, st.floats(0, 1, exclude_max=True))
def test_what_has_no_probability_is_never_chosen(row: np.ndarray, u: float) -> None:
    token = choose(row, u)
    assert row[token] > 0
    below = row[:token].sum()
    assert below - 1e-9 <= u <= below + row[token] + 1e-9


def test_the_ends_of_the_unit_interval() -> None:
    row = np.array([0.0, 0.3, 0.0, 0.7, 0.0])
    assert choose(row, 0.0) == 1
    assert choose(row, np.nextafter(1, 0)) == 3
    assert choose(row * (1 + 2**-52), np.nextafter(1, 0)) == 3
    assert choose(np.array([0.0, 5e-324]), 0.999) == 1


@given(
    seed=st.integers(0, 2**16),
    vocab=st.sampled_from([1, 7, 300, 5000]),
    steps=st.sampled_from([3, 1000]),
    temperature=st.sampled_from([0, 0.01, 0.7, 1, 2.5]),
    top_k=st.sampled_from([0, 1, 3, 25, 400]),
    top_p=st.sampled_from([0, 0.3, 0.9, 1]),
    min_p=st.sampled_from([0, 0.05]),
    penalty=st.sampled_from([1.0, 1.3]),
    order=st.permutations(["temperature", "top_k", "top_p", "min_p", "repetition_penalty"]),
)
def test_the_rules_on_what_an_early_cut_leaves_give_the_bits_of_the_rules_on_everything(
    seed: int, vocab: int, steps: int, penalty: float, order: list[str], **rules: float
) -> None:
    random = np.random.default_rng(seed)
    row = np.round(random.standard_normal(vocab) * 3 * steps) / steps  # in few steps many are equal
    row[random.random(vocab) < 0.1] = -np.inf
    row[random.integers(vocab)] = 2.0
    names = [*(name for name in GenerationSettings().sampler_order if name not in order), *order]
    settings = GenerationSettings(**rules, repetition_penalty=penalty, sampler_order=tuple(names))
    history = History((0,), ())
    after = row
    for stage in stages(row, history, settings):
        after = stage.after
    expected = softmax(after)
    ids, found = likely(row, history, settings)
    assert np.array_equal(distribution(row, history, settings), expected)
    assert np.array_equal(found, expected if ids is None else expected[ids])
    place = choose(found, 0.37)
    assert (place if ids is None else ids[place]) == choose(expected, 0.37)


@given(st.integers(), st.integers(0), st.integers(0))
def test_a_draw_depends_on_nothing_but_its_three_numbers(seed: int, choice: int, position: int) -> None:
    assert 0 <= uniform(seed, choice, position) < 1
    assert uniform(seed, choice, position) == uniform(seed, choice, position)


def test_draws_are_those_of_this_version() -> None:
    """A seed in somebody's notes keeps its meaning."""
    assert [choose(np.full(1000, 1e-3), uniform(7, 0, i)) for i in range(5)] == [438, 46, 112, 264, 590]


@pytest.mark.parametrize("axis", ["seed", "choice", "position"])
def test_draws_are_uniform_along_each_number(axis: str) -> None:
    draws = np.array([uniform(**{"seed": 1, "choice": 0, "position": 0, axis: i}) for i in range(20_000)])
    counts = np.histogram(draws, bins=100, range=(0, 1))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 99 + 5 * (2 * 99) ** 0.5  # chi-squared: mean 99, five deviations
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 5 / 20_000**0.5


@pytest.mark.parametrize(
    "rules",
    [
        {"temperature": 1.0, "top_k": 0},
        {"temperature": 0.7, "top_k": 12},
        {"temperature": 1.3, "top_k": 30, "top_p": 0.9},
        {"temperature": 1.0, "top_k": 0, "min_p": 0.1, "presence_penalty": 1.0},
    ],
)
def test_frequencies_are_the_distribution(rules: dict[str, float]) -> None:
    row = np.random.default_rng(3).normal(scale=1.5, size=50)
    expected = distribution(row, History((), (1, 2, 3)), GenerationSettings(**rules))
    draws = 40_000
    counts = np.bincount([choose(expected, uniform(11, 0, i)) for i in range(draws)], minlength=50)
    assert (counts[expected == 0] == 0).all()
    possible = expected > 0
    freedom = possible.sum() - 1
    chi_squared = ((counts - draws * expected)[possible] ** 2 / (draws * expected[possible])).sum()
    assert chi_squared < freedom + 5 * (2 * freedom) ** 0.5


@given(st.integers(0, 2**16), st.sampled_from([1, 3, 100, 128]), st.floats(0, 1, exclude_max=True))
def test_a_draw_from_few_is_the_draw_from_many(seed: int, few: int, u: float) -> None:
    random = np.random.default_rng(seed)
    logits = random.standard_normal(few) * 5
    row = softmax(np.where(random.random(few) < 0.2, -np.inf, logits) if few > 1 else logits)
    if row.any():
        assert choose(row, u) == choose(np.concatenate((row, np.zeros(400))), u)
    wide = softmax(np.concatenate((logits, np.full(400, -np.inf))))
    assert np.array_equal(softmax(logits), wide[:few])
