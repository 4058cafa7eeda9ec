"""Leaps of the loss: told from its usual ups and downs before the update takes them in."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Trend"]

_MEMORY = 0.98
_FIRST = 20
"""Losses that must have been seen before one can be called a leap."""
_LEAST = 0.01
"""The standard deviation is taken as at least this share of the mean, lest a flat curve make noise a leap."""


@dataclass
class Trend:
    """Running mean and variance of the loss, over some fifty steps; part of what a checkpoint holds."""

    mean: float = 0.0
    variance: float = 0.0
    seen: int = 0

    def leaps(self, loss: float, threshold: float) -> bool:
        """Tell whether `loss` lies more than `threshold` standard deviations above the mean."""
        if self.seen < _FIRST:
            return False
        deviation = max(math.sqrt(self.variance), _LEAST * abs(self.mean))
        return loss > self.mean + threshold * deviation

    def add(self, loss: float) -> None:
        """Take in a loss that is no leap."""
        self.seen += 1
        share = max(1 - _MEMORY, 1 / self.seen)
        off = loss - self.mean
        self.mean += share * off
        self.variance = (1 - share) * (self.variance + share * off * off)
