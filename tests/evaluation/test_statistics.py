"""Intervals and tests against formulas and against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from loquela.evaluation.statistics import difference, interval, interval_of, mcnemar, paired_ratio


def test_the_interval_of_a_mean_is_that_of_the_normal_law_where_there_are_many() -> None:
    values = np.random.default_rng(1).random(400) < 0.3
    low, high = interval(values)
    wide = 1.96 * math.sqrt(values.mean() * (1 - values.mean()) / 400)
    assert low == pytest.approx(values.mean() - wide, abs=0.006)
    assert high == pytest.approx(values.mean() + wide, abs=0.006)


def test_the_bootstrap_agrees_with_scipys() -> None:
    values = np.random.default_rng(2).exponential(size=150)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=5000, method="percentile", rng=3).confidence_interval
    low, high = interval(values)
    assert low == pytest.approx(theirs.low, abs=0.02)
    assert high == pytest.approx(theirs.high, abs=0.02)


def test_a_ratio_is_drawn_together() -> None:
    random = np.random.default_rng(3)
    tokens = random.integers(5, 50, 200).astype(float)
    assert interval(3 * tokens, tokens) == pytest.approx((3.0, 3.0))
    low, high = interval(random.random(200) * tokens, tokens)
    assert low < 0.5 < high


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=50))
def test_an_interval_holds_its_mean_and_is_the_same_every_time(values: list[float]) -> None:
    low, high = interval(values)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    assert interval(values) == (low, high)
    assert interval_of(lambda draw: float(np.mean(np.array(values)[draw])), len(values), 1000) == pytest.approx(
        (low, high)
    )


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_test(better: int, worse: int) -> None:
    expected = stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
    assert mcnemar(better, worse) == pytest.approx(expected)


def test_mcnemar_of_many() -> None:
    assert mcnemar(3000, 2000) < 1e-40


def test_two_models_on_the_same_items() -> None:
    random = np.random.default_rng(5)
    first = random.random(300) < 0.6
    second = first & (random.random(300) < 0.8)
    found = difference(first, second)
    assert found.mean == pytest.approx(first.mean() - second.mean())
    assert 0 < found.ci95[0] < found.mean < found.ci95[1]
    assert found.p < 1e-6
    same = difference(first, first)
    assert (same.mean, same.p) == (0, 1)
    assert set(found.as_dict()) == {"difference", "ci95", "p"}


def test_swapping_signs_agrees_with_wilcoxons_cousin_in_scipy() -> None:
    random = np.random.default_rng(6)
    gaps = random.normal(0.1, 1, 80)
    theirs = stats.permutation_test(
        (gaps, np.zeros(80)), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=9999, rng=1
    )
    assert difference(gaps, np.zeros(80)).p == pytest.approx(theirs.pvalue, abs=0.03)
    assert paired_ratio(gaps, np.zeros(80), np.full(80, 2.0)).mean == pytest.approx(gaps.mean() / 2)
