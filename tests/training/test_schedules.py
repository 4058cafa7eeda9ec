from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loquela.training.schedules import SCHEDULES, rate


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 500), st.integers(0, 600))
def test_every_update_has_a_rate_and_none_is_above_one(schedule: str, steps: int, warmup: int) -> None:
    rates = [rate(schedule, step, steps, warmup) for step in range(steps)]
    assert all(0 < r <= 1 for r in rates)
    rising = rates[:warmup]
    assert rising == [(step + 1) / warmup for step in range(len(rising))]
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


def test_linear_ends_one_step_above_zero() -> None:
    assert [rate("linear", step, 6, 2) for step in range(6)] == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_half_way_through_a_cosine() -> None:
    assert rate("cosine", 50, 100, 0) == pytest.approx(0.5)
    assert rate("warmup_stable_decay", 79, 100, 0) == 1.0
    assert rate("warmup_stable_decay", 90, 100, 0) == pytest.approx(0.5)
