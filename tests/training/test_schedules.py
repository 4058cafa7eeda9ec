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


def test_the_schedule_of_2017_is_the_papers_formula() -> None:
    """Section 5.3: d^-½ · min(step^-½, step · warmup^-1.5) with steps from 1, relative to its peak."""
    warmup = 40
    peak = warmup**-0.5
    for step in range(1000):
        paper = min((step + 1) ** -0.5, (step + 1) * warmup**-1.5) / peak
        assert rate("inverse_sqrt", step, 1000, warmup) == pytest.approx(paper, rel=0.02)


@pytest.mark.parametrize("name", ["linear", "cosine", "constant", "inverse_sqrt"])
def test_the_curves_are_those_of_transformers(name: str) -> None:
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=10, num_training_steps=60)
    for step in range(60):
        # Theirs begins the warm-up at 0 and so is a step behind during it.
        if step >= 10:
            assert rate(name, step, 60, 10) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()


def test_a_floor_is_where_the_rate_ends() -> None:
    assert rate("cosine", 10**6 - 1, 10**6, 0, floor=0.1) == pytest.approx(0.1, rel=1e-4)
    assert rate("linear", 0, 10, 0, floor=0.1) == 1.0
    assert rate("linear", 5, 10, 0, floor=0.1) == pytest.approx(0.55)
