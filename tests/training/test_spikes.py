from __future__ import annotations

import random
import statistics

from loquela.training.spikes import Trend


def test_mean_and_deviation_are_those_of_the_losses() -> None:
    choose = random.Random(0)
    losses = [choose.gauss(3.0, 0.2) for _ in range(40)]
    trend = Trend()
    for loss in losses:
        trend.add(loss)
    assert abs(trend.mean - statistics.mean(losses)) < 1e-9, "at first each counts as much"
    assert abs(trend.variance**0.5 - statistics.pstdev(losses)) < 1e-9


def test_a_leap_is_told_and_ordinary_noise_is_not() -> None:
    choose = random.Random(1)
    trend = Trend()
    leaps = 0
    for step in range(2000):
        loss = 2.0 + 6.0 / (1 + step / 50) + choose.gauss(0, 0.1)
        leaps += trend.leaps(loss, 6.0)
        trend.add(loss)
    assert leaps == 0
    assert trend.leaps(3.2, 6.0)
    assert not Trend().leaps(1e9, 6.0), "the first losses have nothing to be held against"
