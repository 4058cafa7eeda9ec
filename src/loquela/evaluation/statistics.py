"""How sure a score is: bootstrap intervals, and two models on the same items."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["RESAMPLES", "Difference", "difference", "interval", "interval_of", "mcnemar", "paired_ratio"]

Numbers: TypeAlias = npt.NDArray[np.float64]
Statistic: TypeAlias = "Callable[[npt.NDArray[np.int64]], float]"
RESAMPLES = 1000
_SEED = 20
_CELLS = 1 << 22  # of a matrix of resamples that is in memory at a time


def interval(
    values: Sequence[float] | Numbers, weights: Sequence[float] | Numbers | None = None
) -> tuple[float, float]:
    """Return the 95 % interval of a mean by the percentile bootstrap (Efron, 1979): a pure function of the values.

    With `weights` it is that of `sum(values) / sum(weights)`, both drawn together, as for a loss per token.
    """
    return _bounds(_means(np.asarray(values, np.float64), None if weights is None else np.asarray(weights, np.float64)))


def interval_of(statistic: Statistic, n: int, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Return the 95 % interval of any statistic of items, given the numbers (n,) of those that were drawn."""
    draws = np.random.default_rng(_SEED).integers(0, n, (resamples, n))
    return _bounds(np.array([statistic(draw) for draw in draws]))


def _bounds(found: Numbers) -> tuple[float, float]:
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)


def _means(values: Numbers, weights: Numbers | None) -> Numbers:
    n, random = len(values), np.random.default_rng(_SEED)
    rows = max(1, min(RESAMPLES, _CELLS // n))
    found = []
    for start in range(0, RESAMPLES, rows):
        draws = random.integers(0, n, (min(rows, RESAMPLES - start), n))
        totals = values[draws].sum(1)
        found.append(totals / n if weights is None else totals / weights[draws].sum(1))
    return np.concatenate(found)


@dataclass(frozen=True)
class Difference:
    """A score minus that of another model on the same items."""

    mean: float
    ci95: tuple[float, float]
    p: float
    """How often a difference as large comes of chance alone, were both models equally good."""

    def as_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {"difference": self.mean, "ci95": list(self.ci95), "p": self.p}


def difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compare two models item by item: bootstrap of the mean difference, and a test that swaps them at random.

    Where items are right or wrong the test is McNemar's, exact; else 10,000 random swaps of sign.
    """
    gaps = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    if set(np.unique(gaps)) <= {-1.0, 0.0, 1.0}:
        p = mcnemar(int((gaps > 0).sum()), int((gaps < 0).sum()))
    else:
        p = _swaps(gaps)
    return Difference(float(gaps.mean()), interval(gaps), p)


def mcnemar(better: int, worse: int) -> float:
    """Return the two-sided exact p of McNemar (1947): items that only one model had right fall as a fair coin does."""
    n = better + worse
    tail = sum(math.comb(n, k) for k in range(min(better, worse) + 1))
    return float(min(1.0, 2 * tail / 2**n))


def _swaps(gaps: Numbers, swaps: int = 10_000) -> float:
    random, observed, as_large = np.random.default_rng(_SEED), abs(gaps.sum()), 0
    rows = max(1, min(swaps, _CELLS // len(gaps)))
    for start in range(0, swaps, rows):
        signs = random.integers(0, 2, (min(rows, swaps - start), len(gaps)), dtype=np.int8) * 2 - 1
        as_large += int((np.abs(signs @ gaps) >= observed - 1e-12).sum())
    return (as_large + 1) / (swaps + 1)


def paired_ratio(first: Sequence[float], second: Sequence[float], weights: Sequence[float]) -> Difference:
    """Compare two losses per unit of weight, such as tokens, that were summed up in the same groups."""
    gaps = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    sizes = np.asarray(weights, np.float64)
    return Difference(float(gaps.sum() / sizes.sum()), interval(gaps, sizes), _swaps(gaps))
